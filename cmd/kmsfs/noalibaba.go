//go:build noalibaba

package main

import (
	"errors"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

func newAlibaba(cloud.Config) (cloud.KMS, error) { return nil, errNoAlibaba() }

func newAlibabaSecrets(cloud.Config) (secretManager, error) { return nil, errNoAlibaba() }

func errNoAlibaba() error {
	return errors.New("Alibaba Cloud KMS is not in this build (tag noalibaba)")
}
