//go:build nohuawei

package main

import (
	"errors"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

func newHuawei(cloud.Config) (cloud.KMS, error) { return nil, errNoHuawei() }

func newHuaweiSecrets(cloud.Config) (secretManager, error) { return nil, errNoHuawei() }

func errNoHuawei() error {
	return errors.New("Huawei Cloud KMS is not in this build (tag nohuawei)")
}
