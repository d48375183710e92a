//go:build !noalibaba

package main

import (
	"github.com/kmsfs/kmsfs/keyring/alikms"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

func newAlibaba(c cloud.Config) (cloud.KMS, error) { return alikms.NewClient(c) }

func newAlibabaSecrets(c cloud.Config) (secretManager, error) { return alikms.NewClient(c) }
