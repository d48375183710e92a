//go:build nohuawei

package main

import (
	"errors"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

func newHuawei(cloud.Config) (opener, error) {
	return nil, errors.New("Huawei Cloud KMS is not in this build (tag nohuawei)")
}
