//go:build !noalibaba

package main

import (
	"github.com/kmsfs/kmsfs/keyring/alikms"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

func newAlibaba(c cloud.Config) (opener, error) {
	client, err := alikms.NewClient(c)
	if err != nil {
		return nil, err
	}
	return func(uri string, known *cloud.KeyInfo) (*cloud.Keyring, error) { return alikms.New(client, uri, known) }, nil
}

func newAlibabaSecrets(c cloud.Config) (secretManager, error) { return alikms.NewClient(c) }
