package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/failover"
	"github.com/kmsfs/kmsfs/volume"
)

// finishWait bounds how long a command waits for a daemon that has unmounted a volume but not yet let go of it.
const finishWait = 10 * time.Second

// A trust says which CMKs a command may ask for a volume's data key, and where the KMSs are. Nothing of it comes from the ciphertext
// directory, which an attacker may have rewritten.
type trust struct {
	named    []string // CMKs of the command line
	config   []string // CMKs of the configuration file
	keyrings *keyrings

	endpoints map[string]string // URL by PROVIDER/REGION
	settings  config
}

// configuredTrust is newTrust for a command that has no mount options and needs nothing else of the configuration.
func configuredTrust(c *cli.Context) (trust, error) {
	conf, err := loadConfig(c.String("config"))
	if err != nil {
		return trust{}, err
	}
	return newTrust(c, mountOptions{}, conf)
}

// endpointList returns the endpoints as --endpoint has them, for a daemon that may not know them.
func (t trust) endpointList() (list []string) {
	for where, url := range t.endpoints {
		list = append(list, where+"="+url)
	}
	return list
}

// newTrust collects and checks what the command line (o being its mount options, if it has any) and the configuration say.
func newTrust(c *cli.Context, o mountOptions, conf config) (trust, error) {
	conf, err := conf.resolved(c, o.endpoints)
	if err != nil {
		return trust{}, err
	}
	t := trust{named: slices.Concat(c.StringSlice("cmk"), o.cmks), config: conf.CMK, settings: conf}
	t.endpoints, err = allEndpoints(c, o.endpoints, conf)
	t.keyrings = newKeyrings(t.endpoints, conf)
	return t, conf.hide(errors.Join(err, checkCMKs(t.named), checkCMKs(t.config)))
}

// allEndpoints reads the endpoints of the command line (more being those of its mount options), the environment and the configuration, in this order.
func allEndpoints(c *cli.Context, more []string, conf config) (map[string]string, error) {
	return parseEndpoints(slices.Concat(c.StringSlice("endpoint"), more, []string{os.Getenv("KMSFS_ENDPOINTS")}, conf.Endpoint))
}

// trustedBy returns the CMKs that are trusted for a volume, in the order in which they are asked: those of the command line or, if it
// names none, those of the configuration file, of the service's credentials and of the machine's record together.
func (t trust) trustedBy(id header.ID) ([]string, error) {
	if len(t.named) > 0 {
		return t.named, nil
	}
	credentials, err := credentialCMKs()
	if err != nil {
		return nil, err
	}
	noted, err := record(id)
	if err != nil {
		return nil, err
	}
	var cmks []string
	for _, cmk := range slices.Concat(t.config, credentials, noted) {
		if !slices.Contains(cmks, cmk) {
			cmks = append(cmks, cmk)
		}
	}
	return cmks, nil
}

// credentialCMKs returns the local CMKs that systemd hands to a service: the files *.cmk of its credentials directory.
func credentialCMKs() (cmks []string, err error) {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("CREDENTIALS_DIRECTORY: %w", err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".cmk") {
			cmks = append(cmks, "local:"+filepath.Join(dir, e.Name()))
		}
	}
	return cmks, nil
}

// openVolume opens a ciphertext directory without any key.
func openVolume(dir string) (*volume.Volume, error) {
	v, err := volume.Open(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, fail(exitNotVolume, "%w", err)
	}
	return v, err
}

// lockVolume keeps others from using a volume. Where its user has unmounted it already but still finishes, it waits a little.
func lockVolume(ctx context.Context, v *volume.Volume) error {
	for end := time.Now().Add(finishWait); ; {
		err := v.Lock()
		if !errors.Is(err, volume.ErrInUse) {
			return err
		}
		if at := mountpointOf(v.Dir()); at != "" {
			return fmt.Errorf("%w on %s; unmount it first", err, at)
		}
		if time.Now().After(end) {
			return fmt.Errorf("%w, out of sight: by another user of the volume, or a mount that was detached while it was in use", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unlock unwraps the volume's data key with the first trusted CMK that can, and returns the keyring of the trusted CMKs. It is not nil
// where there is no error.
func (t trust) unlock(ctx context.Context, v *volume.Volume) (*failover.Keyring, error) {
	cmks, err := t.trustedBy(v.Header().FileID)
	if err != nil {
		return nil, err
	}
	k, failures := t.keyrings.any(cmks)
	for _, err := range failures {
		t.keyrings.log().Warn("CMK cannot be used", "err", err)
	}
	if len(failures) < len(cmks) {
		err := v.Unlock(ctx, k)
		if err == nil {
			t.keyrings.learn(v)
			noted, err := readRecord(v.Header().FileID)
			if err != nil {
				t.keyrings.log().Warn("whether the rotation of the data key was undone cannot be told", "err", err)
			}
			v.Expect(noted.Generation)
			return k, nil
		}
		if exitCode(err) != exitCMK {
			return nil, hinted(err)
		}
		failures = append(failures, hinted(err))
	}
	edks := slices.DeleteFunc(slices.Clone(v.Header().EDKs), func(e keyring.EncryptedDataKey) bool { return hasCMK(k, e.CMK) })
	if len(edks) > 0 { // those that are trusted have said themselves what is wrong with them
		failures = append(failures, wrappedBy(edks))
	}
	if len(cmks) == 0 {
		return nil, fail(exitCMK, "%s: no CMK is trusted for this volume on this machine\n%w", v.Dir(), errors.Join(failures...))
	}
	return nil, fail(exitCMK, "%w", errors.Join(failures...))
}

// hasCMK reports whether a keyring has the CMK that headers call so.
func hasCMK(k *failover.Keyring, cmk string) bool {
	return slices.ContainsFunc(k.Status(), func(s failover.Status) bool { return s.CMK == cmk })
}

// wrappedBy is the hint that says which CMKs would open a volume.
func wrappedBy(edks []keyring.EncryptedDataKey) error { return opensHint("the volume", cmksOf(edks)) }

func cmksOf(edks []keyring.EncryptedDataKey) (cmks []string) {
	for _, e := range edks {
		cmks = append(cmks, e.CMK)
	}
	return cmks
}

// opensHint says which CMKs would open something. Nobody has authenticated them, hence the quotes.
func opensHint(what string, cmks []string) error {
	var list []string
	for _, cmk := range cmks {
		list = append(list, strconv.Quote(cmk))
	}
	return fmt.Errorf("hint: %s says that any one of %s opens it; if you trust one of them, add it with --cmk (a local one by the path of its file: --cmk local:/path)",
		what, strings.Join(list, ", "))
}

func recordPath(id header.ID) (string, error) {
	dir, err := configDir()
	return filepath.Join(dir, "volumes", id.String()+".toml"), err
}

// readRecord returns what this machine has noted of a volume, which may be nothing.
func readRecord(id header.ID) (config, error) {
	path, err := recordPath(id)
	if err != nil {
		return config{}, err
	}
	c, err := readTOML(path)
	if errors.Is(err, os.ErrNotExist) {
		return config{}, nil
	}
	if err == nil {
		if err = checkCMKs(c.CMK); err != nil {
			err = usagef("%s: %w", path, err)
		}
	}
	return c, err
}

// record returns the CMKs that this machine has noted for a volume.
func record(id header.ID) ([]string, error) {
	c, err := readRecord(id)
	return c.CMK, err
}

// note records the CMKs of the command line for the next mount, unless there are some already. An unlocked volume has shown that one of them opens it.
func (t trust) note(id header.ID) error {
	if len(t.named) == 0 {
		return nil
	}
	if have, err := record(id); err != nil || len(have) > 0 {
		return err
	}
	return writeRecord(id, t.named)
}

// noteGeneration records the newest data key of new files that this machine has seen, so that a volume without it is refused from then on.
func noteGeneration(v *volume.Volume) error {
	id := v.Header().FileID
	c, err := readRecord(id)
	if err != nil || v.Generation() <= c.Generation {
		return err
	}
	c.Generation = v.Generation()
	return saveRecord(id, c)
}

// noteBegun records that all files are being rewritten under the data key of this generation, 0 for that none are.
func noteBegun(v *volume.Volume, generation uint64) error {
	id := v.Header().FileID
	c, err := readRecord(id)
	if err != nil || generation == c.Begun {
		return err
	}
	c.Begun = generation
	return saveRecord(id, c)
}

// writeRecord notes the trusted CMKs of a volume.
func writeRecord(id header.ID, cmks []string) error {
	c, err := readRecord(id)
	if err != nil {
		return err
	}
	c.CMK = cmks
	return saveRecord(id, c)
}

// saveRecord replaces a record, atomically and durably: the volume may be on another file system, and name a new CMK alone before this one has committed.
func saveRecord(id header.ID, c config) error {
	path, err := recordPath(id)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	b, err := toml.Marshal(c)
	if err != nil {
		return err
	}
	return replaceFile(path, b)
}
