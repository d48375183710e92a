//go:build !nohuawei

package main

import (
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/huaweikms"
)

func newHuawei(c cloud.Config) (cloud.KMS, error) { return huaweikms.NewClient(c) }

func newHuaweiSecrets(c cloud.Config) (secretManager, error) { return huaweikms.NewClient(c) }
