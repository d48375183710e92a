package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/keyring/local"
)

// checkCMKs refuses CMK URIs that no provider knows, without opening anything.
func checkCMKs(cmks []string) error {
	seen := make(map[string]bool)
	for _, cmk := range cmks {
		path, isLocal := strings.CutPrefix(cmk, "local:")
		switch _, err := cloud.ParseCMK(cmk); {
		case seen[cmk]:
			return usagef("CMK %s is given twice", cmk)
		case isLocal && !filepath.IsAbs(path):
			return usagef("CMK %q: the path must be absolute, such as local:/etc/kmsfs/cmk", cmk)
		case !isLocal && err != nil:
			return usagef("CMK %q is none of local:/absolute/path, acs:kms:REGION:ACCOUNT:key/ID and huawei:kms:REGION:PROJECT:key/ID", cmk)
		}
		seen[cmk] = true
	}
	return nil
}

// keyrings turns CMK URIs into keyrings; nothing else does. One client serves all CMKs of a cloud, so that its cap on the rate of calls holds.
type keyrings struct {
	clouds map[string]func() (cloud.KMS, error) // by the scheme of CMK URIs
	known  map[string]*cloud.KeyInfo            // what a volume keeps of CMKs, by URI; see learn
	opened map[string]*cloud.Keyring            // by URI
	logger *slog.Logger                         // is told what goes wrong at CMKs; nil for nobody
	stop   context.CancelFunc                   // ends the polling of secrets
}

// newKeyrings returns keyrings with the endpoints and the settings of each cloud.
func newKeyrings(endpoints map[string]string, conf config) *keyrings {
	s := &keyrings{known: make(map[string]*cloud.KeyInfo), opened: make(map[string]*cloud.Keyring)}
	var ctx context.Context
	ctx, s.stop = context.WithCancel(context.Background())
	store := newSecretStore(conf, endpoints, s.log)
	connect := func(scheme string, settings cloudSettings) func() (cloud.KMS, error) {
		return sync.OnceValues(func() (cloud.KMS, error) {
			p := providerOf(scheme)
			c, err := p.client(settings, endpoints, s.log)
			if err != nil {
				return nil, err
			}
			if settings.AccessKey != "" {
				c.Credentials = store.credentials(ctx, p.name, settings, conf.Secrets, s.log)
			}
			return p.newKMS(c)
		})
	}
	s.clouds = map[string]func() (cloud.KMS, error){
		cloud.Alibaba: connect(cloud.Alibaba, conf.Alibaba),
		cloud.Huawei:  connect(cloud.Huawei, conf.Huawei),
	}
	return s
}

func (s *keyrings) log() *slog.Logger {
	if s.logger == nil {
		return silent()
	}
	return s.logger
}

func silent() *slog.Logger { return slog.New(slog.DiscardHandler) }

// open opens one CMK whose URI checkCMKs has passed.
func (s *keyrings) open(cmk string) (failover.CMK, error) {
	scheme, path, _ := strings.Cut(cmk, ":")
	if scheme == "local" {
		return local.Open(path)
	}
	kms, err := s.clouds[scheme]()
	if err != nil {
		return nil, err
	}
	parsed, err := cloud.ParseCMK(cmk)
	if err != nil {
		return nil, err
	}
	k := cloud.NewKeyring(kms, parsed, s.known[cmk])
	s.opened[cmk] = k
	return k, nil
}

// all returns the keyring of all of cmks, for wrapping: all or nothing.
func (s *keyrings) all(cmks []string) (*failover.Keyring, error) {
	opened, failures := s.each(cmks)
	if len(failures) > 0 {
		for i, err := range failures { // a new CMK is of use for new data only
			if missing := new(os.PathError); errors.As(err, &missing) && errors.Is(err, os.ErrNotExist) {
				failures[i] = fmt.Errorf("%w; create one with: kmsfs key new %s", err, missing.Path)
			}
		}
		return nil, fail(exitCMK, "%w", errors.Join(failures...))
	}
	uris := make(map[string]string) // by the CMK's own name
	for i, k := range opened {
		if other := uris[k.CMK()]; other != "" {
			return nil, usagef("CMKs %s and %s are the same", other, cmks[i])
		}
		uris[k.CMK()] = cmks[i]
	}
	return s.join(opened), nil
}

// any returns the keyring of those of cmks that can be opened, for unwrapping, and what is wrong with the others: any
// one CMK opens a volume.
func (s *keyrings) any(cmks []string) (*failover.Keyring, []error) {
	opened, failures := s.each(cmks)
	return s.join(opened), failures
}

// sdk returns the keyring of those of cmks that can be opened, for a message of an encryption SDK with a data key of size bytes, and what is wrong with the others.
func (s *keyrings) sdk(cmks []string, size int, ec keyring.EncryptionContext) (*failover.Keyring, []error) {
	opened, failures := s.each(cmks)
	for i, k := range opened {
		opened[i] = k.(*cloud.Keyring).SDK(size, ec) // a local CMK wraps for no SDK
	}
	return s.join(opened), failures
}

// join makes one keyring of several, in the user's order.
func (s *keyrings) join(cmks []failover.CMK) *failover.Keyring {
	return failover.New(cmks, failover.Options{OnEvent: func(e failover.Event) { s.log().Warn("CMK "+e.What, "kms", e) }})
}

func (s *keyrings) each(cmks []string) (opened []failover.CMK, failures []error) {
	for _, cmk := range cmks {
		k, err := s.open(cmk)
		if err != nil {
			failures = append(failures, fmt.Errorf("CMK %s: %w", cmk, err))
			continue
		}
		opened = append(opened, k)
	}
	return opened, failures
}

// stateWait is how long a mount waits for the states of its CMKs, so that warnings reach the terminal. What comes later is only logged.
const stateWait = 300 * time.Millisecond

// warnStates asks the KMSs for the states of those of cmks that are theirs, in the background, and warns of each that is or will be of no use.
// It waits a moment for them, unless one is known to be slow. Opening the volume needs none of these calls, and one that fails is no fault.
func (s *keyrings) warnStates(ctx context.Context, cmks []failover.Status, warn func(string)) {
	var group sync.WaitGroup
	slow := false
	for _, c := range cmks {
		k := s.opened[c.CMK]
		if k == nil {
			continue
		}
		slow = slow || c.Skipped != nil
		group.Go(func() {
			info, _, err := k.Describe(ctx)
			var e *cloud.Error
			switch {
			case errors.As(err, &e) && (e.Kind == cloud.KeyNotFound || e.Kind == cloud.PendingDeletion || e.Kind == cloud.KeyDisabled):
				warn(err.Error())
			case err != nil:
				s.log().Info("the state of a CMK is not known", "err", err)
			case info.State == cloud.StatePendingDeletion:
				when := ""
				if info.Deletion != "" {
					when = ", for " + info.Deletion
				}
				warn(fmt.Sprintf("CMK %s IS PENDING DELETION%s: cancel that now, or its wrapped keys are lost", k.CMK(), when))
			case info.State != cloud.StateEnabled:
				warn(fmt.Sprintf("CMK %s is of no use: its state is %s", k.CMK(), info.State))
			}
		})
	}
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	if slow {
		return
	}
	timer := time.NewTimer(stateWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// warnFailed says which CMKs failed where another one could.
func warnFailed(stderr io.Writer, k *failover.Keyring) {
	for _, s := range k.Status() {
		if s.Last != nil && s.Last.Error != "" {
			fmt.Fprintf(stderr, "kmsfs: warning: %s\n", strings.ReplaceAll(s.Last.Error, "\n", "; "))
		}
	}
}

// parseEndpoints reads PROVIDER/REGION=URL, also several with commas between; the first for a region counts. Plain http reaches only
// the machine itself.
func parseEndpoints(lists []string) (map[string]string, error) {
	endpoints := make(map[string]string)
	for e := range strings.SplitSeq(strings.Join(lists, ","), ",") {
		if e == "" {
			continue
		}
		where, to, ok := strings.Cut(e, "=")
		provider, region, hasRegion := strings.Cut(where, "/")
		if !ok || !hasRegion || region == "" || provider != "alibaba" && provider != "huawei" {
			return nil, usagef("endpoint %q is not PROVIDER/REGION=URL with provider alibaba or huawei", e)
		}
		if _, err := cloud.ParseEndpoint(to); err != nil {
			return nil, usagef("endpoint %s: the URL must be https://HOST (http:// only to the loopback): %w", where, err)
		}
		if endpoints[where] == "" {
			endpoints[where] = to
		}
	}
	return endpoints, nil
}
