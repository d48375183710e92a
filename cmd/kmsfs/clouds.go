package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/creds"
	"github.com/kmsfs/kmsfs/secrets"
)

// A cloudSettings is the table of one cloud in the configuration file.
type cloudSettings struct {
	Credentials string `toml:"credentials,omitempty"` // path of a credential file
	Metadata    string `toml:"metadata,omitempty"`    // base URL of the instance's metadata service, or "off"
	Role        string `toml:"role,omitempty"`        // Alibaba Cloud: RAM role of the instance

	Region  string `toml:"region,omitempty"`  // of secrets
	Project string `toml:"project,omitempty"` // Huawei Cloud: of secrets

	// An access key for the KMS in place of the instance's own credentials. All but AccessKey must be secrets.
	AccessKey     string `toml:"access-key,omitempty"`
	SecretKey     string `toml:"secret-key,omitempty"`
	SecurityToken string `toml:"security-token,omitempty"`
}

// A provider is a cloud as the user sees it.
type provider struct {
	name      string // in --endpoint and in the configuration file
	fileVar   string // variable with the path of a credential file
	file      string // where the vendor's tools keep one, below the home directory
	keyVars   string // variables with an access key
	role      string // what gives an instance a credential
	rate      int    // the cap on calls in a second
	newKeeper func(creds.Options) (*creds.Keeper, error)
	newKMS    func(cloud.Config) (cloud.KMS, error)

	secrets    string // scheme of references to secrets
	newManager func(cloud.Config) (secretManager, error)
}

// providerOf returns the cloud whose CMK URIs begin so.
func providerOf(scheme string) provider {
	if scheme == cloud.Alibaba {
		return provider{
			"alibaba", "ALIBABA_CLOUD_CREDENTIALS_FILE", ".alibabacloud/credentials",
			"ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET", "a RAM role", 200, creds.NewAlibaba, newAlibaba,
			secrets.Alibaba, newAlibabaSecrets,
		}
	}
	return provider{
		"huawei", "HUAWEICLOUD_SDK_CREDENTIALS_FILE", ".huaweicloud/credentials",
		"HUAWEICLOUD_SDK_AK and HUAWEICLOUD_SDK_SK", "an agency", 10, creds.NewHuawei, newHuawei,
		secrets.CSMS, newHuaweiSecrets,
	}
}

// providerOfSecret returns the scheme of CMK URIs of the cloud whose references to secrets begin so.
func providerOfSecret(scheme string) string {
	if scheme == secrets.Alibaba {
		return cloud.Alibaba
	}
	return cloud.Huawei
}

// client returns what a client of the cloud is made with: the instance's own credentials, which live as long as the process, and the endpoints. Nothing is
// asked yet.
func (p provider) client(s cloudSettings, endpoints map[string]string, log func() *slog.Logger) (cloud.Config, error) {
	o := creds.Options{Getenv: os.Getenv, File: s.Credentials, Instance: s.Metadata != "off", Role: s.Role}
	if o.Instance {
		o.Metadata = s.Metadata
	}
	if home, err := os.UserHomeDir(); err == nil && o.File == "" && os.Getenv(p.fileVar) == "" {
		o.File = filepath.Join(home, p.file)
	}
	o.Failed = func(err error) { log().Warn("the credential of "+p.name+" was not renewed", "err", err) }
	keeper, err := p.newKeeper(o)
	if err != nil {
		return cloud.Config{}, err
	}
	regions := make(map[string]string)
	for where, to := range endpoints {
		if region, ok := strings.CutPrefix(where, p.name+"/"); ok {
			regions[region] = to
		}
	}
	return cloud.Config{Credentials: keeper, Endpoints: regions}, nil
}

// hinted adds to an error what to do about the calls that failed.
func hinted(err error) error {
	var hints []string
	cloudErrors(err, func(e *cloud.Error) {
		about, check := "", "docs/secrets.md"
		cmk, bad := cloud.ParseCMK(e.CMK)
		if bad == nil {
			about, check = cmk.Provider, "kmsfs keyring check --cmk "+e.CMK+" says what its user may do; docs/kms.md"
		} else if ref, err := secrets.Parse(e.CMK); err == nil {
			about, cmk.Region = providerOfSecret(ref.Scheme), e.Region
		} else {
			return
		}
		p := providerOf(about)
		hint := ""
		var dns *net.DNSError
		switch {
		case e.Kind == cloud.NoCredential:
			hint = fmt.Sprintf("hint: set %s, or name a file with credentials= in [%s] of kmsfs.toml or in %s, or give the instance %s", p.keyVars, p.name, p.fileVar, p.role)
		case e.Kind == cloud.BadCredential && e.Skew.Abs() >= cloud.SkewTold:
			hint = "hint: set the clock of this machine: a KMS refuses calls that are signed too early or too late"
		case e.Kind == cloud.BadCredential:
			hint = fmt.Sprintf("hint: look at the access key in %s, in the file that credentials= in [%s] of kmsfs.toml or %s names, or of the instance's role: it is not one of this account, or not any more", p.keyVars, p.name, p.fileVar)
		case e.Kind == cloud.KeyNotFound:
			hint = "hint: compare region, account or project, and ID with what the console of the KMS shows"
		case errors.As(e.Err, &dns) && dns.IsNotFound:
			hint = fmt.Sprintf("hint: if region %s is right, say where its KMS is: --endpoint %s/%s=https://HOST", cmk.Region, p.name, cmk.Region)
		case dns != nil:
			hint = "hint: no name service answers this machine: see to its network and /etc/resolv.conf"
		case errors.As(e.Err, new(*tls.CertificateVerificationError)):
			hint = "hint: if a proxy or the endpoint has a certificate of your own authority, name a file with that authority in SSL_CERT_FILE"
		case e.Kind == cloud.NoPermission:
			hint = fmt.Sprintf("hint: %s lists the permissions that are needed", check)
		default:
			return
		}
		if !slices.Contains(hints, hint) {
			hints = append(hints, hint)
		}
	})
	if len(hints) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, strings.Join(hints, "\n"))
}

// cloudErrors calls yield with every failed call that an error is made of.
func cloudErrors(err error, yield func(*cloud.Error)) {
	switch e := err.(type) {
	case *cloud.Error:
		if inner := new(cloud.Error); errors.As(e.Err, &inner) { // its credential is a secret that cannot be read
			yield(inner)
			return
		}
		yield(e)
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			cloudErrors(err, yield)
		}
	case interface{ Unwrap() error }:
		cloudErrors(e.Unwrap(), yield)
	}
}
