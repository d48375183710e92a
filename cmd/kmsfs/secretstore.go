package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/creds"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/secrets"
)

// pollInterval is how often secrets are read again by default.
const pollInterval = 10 * time.Minute

// A secretManager is that of one cloud.
type secretManager interface {
	GetSecret(ctx context.Context, s cloud.Secret) ([]byte, error)
	CreateSecret(ctx context.Context, s cloud.Secret, n cloud.NewSecret) error
}

// A secretStore is the secret managers of both clouds. Calls are signed with the instance's own credentials, never with an access key that may be a
// secret itself, so that no secret waits for another.
type secretStore struct {
	settings map[string]cloudSettings                 // by scheme of references
	managers map[string]func() (secretManager, error) // by scheme of references
}

func newSecretStore(conf config, endpoints map[string]string, log func() *slog.Logger) *secretStore {
	manager := func(scheme string, settings cloudSettings) func() (secretManager, error) {
		return sync.OnceValues(func() (secretManager, error) {
			p := providerOf(scheme)
			c, err := p.client(settings, endpoints, log)
			if err != nil {
				return nil, err
			}
			return p.newManager(c)
		})
	}
	return &secretStore{
		settings: map[string]cloudSettings{secrets.Alibaba: conf.Alibaba, secrets.CSMS: conf.Huawei},
		managers: map[string]func() (secretManager, error){
			secrets.Alibaba: manager(cloud.Alibaba, conf.Alibaba),
			secrets.CSMS:    manager(cloud.Huawei, conf.Huawei),
		},
	}
}

// place returns where the secret of a reference is: the settings say so.
func (s *secretStore) place(ref secrets.Ref) (cloud.Secret, error) {
	set, name := s.settings[ref.Scheme], providerOf(providerOfSecret(ref.Scheme)).name
	project := ref.Scheme == secrets.CSMS
	switch {
	case set.Region == "":
		return cloud.Secret{}, usagef("%s: its region is not known; say region = \"…\" in [%s] of kmsfs.toml, or --region", ref, name)
	case project && set.Project == "":
		return cloud.Secret{}, usagef("%s: its project is not known; say project = \"…\" in [%s] of kmsfs.toml, or --project", ref, name)
	}
	at := cloud.Secret{URI: ref.String(), Region: set.Region, Name: ref.Name, Version: ref.Version}
	if project {
		at.Account = set.Project
	}
	if at.CheckPlace(project) != nil {
		return at, usagef("%s: %q or %q is no region or project", ref, set.Region, set.Project)
	}
	return at, nil
}

// get reads what a reference stands for.
func (s *secretStore) get(ctx context.Context, ref secrets.Ref) (secrets.Value, error) {
	at, err := s.place(ref)
	if err != nil {
		return nil, err
	}
	m, err := s.managers[ref.Scheme]()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	var whole secrets.Value
	err = failover.Retry(ctx, func(ctx context.Context) (err error) {
		whole, err = m.GetSecret(ctx, at)
		return err
	})
	if err != nil {
		return nil, err
	}
	defer whole.Wipe()
	value, err := whole.Field(ref.Field)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return value, nil
}

// create makes a secret. It is not repeated: the first call may have succeeded although it was not answered.
func (s *secretStore) create(ctx context.Context, ref secrets.Ref, n cloud.NewSecret) error {
	at, err := s.place(ref)
	if err != nil {
		return err
	}
	m, err := s.managers[ref.Scheme]()
	if err != nil {
		return fmt.Errorf("%s: %w", ref, err)
	}
	return m.CreateSecret(ctx, at, n)
}

// text reads the value of a setting, which may be a reference.
func (s *secretStore) text(ctx context.Context, setting, value string) (string, error) {
	if !secrets.IsRef(value) {
		return value, nil
	}
	ref, err := secrets.Parse(value)
	if err != nil {
		return "", usagef("setting %s: %w", setting, err)
	}
	v, err := s.get(ctx, ref)
	if err != nil {
		return "", fmt.Errorf("setting %s: %w", setting, err)
	}
	defer v.Wipe()
	text, err := v.Text()
	if err != nil {
		return "", fmt.Errorf("setting %s: %s: %w", setting, ref, err)
	}
	return text, nil
}

// credentials returns the access key of a cloud's table, which is made of secrets, and reads it again until ctx is done.
func (s *secretStore) credentials(ctx context.Context, table string, set cloudSettings, poll secretSettings, log func() *slog.Logger) cloud.Credentials {
	fetch := func(ctx context.Context) (c creds.Credential, err error) {
		for _, part := range []struct {
			setting, value string
			into           *string
		}{{"access-key", set.AccessKey, &c.ID}, {"secret-key", set.SecretKey, &c.Secret}, {"security-token", set.SecurityToken, &c.Token}} {
			if *part.into, err = s.text(ctx, table+"."+part.setting, part.value); err != nil {
				return creds.Credential{}, err
			}
		}
		return c, nil
	}
	return polledCredentials{secrets.NewPoller(ctx, fetch, poll.every(), func(err error) {
		log().Warn("the access key of "+table+" was not read again; the last one stays", "err", err)
	})}
}

// polledCredentials are an access key that is made of secrets.
type polledCredentials struct {
	*secrets.Poller[creds.Credential]
}

// Renew implements [cloud.Credentials]: a refused key may have been rotated since it was read.
func (p polledCredentials) Renew(ctx context.Context, bad creds.Credential) (creds.Credential, error) {
	c, err := p.Poller.Renew(ctx, func(have creds.Credential) bool { return have == bad })
	if err == nil && c == bad {
		err = errors.New("the secret still holds the one that was refused")
	}
	return c, err
}
