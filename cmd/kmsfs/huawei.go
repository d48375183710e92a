//go:build !nohuawei

package main

import (
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/huaweikms"
)

func newHuawei(c cloud.Config) (opener, error) {
	client, err := huaweikms.NewClient(c)
	if err != nil {
		return nil, err
	}
	return func(uri string, known *cloud.KeyInfo) (*cloud.Keyring, error) {
		return huaweikms.New(client, uri, known)
	}, nil
}

func newHuaweiSecrets(c cloud.Config) (secretManager, error) { return huaweikms.NewClient(c) }
