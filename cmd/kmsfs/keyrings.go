package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/local"
)

// checkCMKs refuses CMK URIs that no provider knows, without opening anything.
func checkCMKs(cmks []string) error {
	seen := make(map[string]bool)
	acs := regexp.MustCompile(`^acs:kms:[a-z0-9-]+:[^:/]+:key/[^:/]+$`)
	huawei := regexp.MustCompile(`^huawei:kms:[a-z0-9-]+:[^:/]+:key/[^:/]+$`)
	for _, cmk := range cmks {
		path, isLocal := strings.CutPrefix(cmk, "local:")
		switch {
		case seen[cmk]:
			return usagef("CMK %s is given twice", cmk)
		case isLocal && !filepath.IsAbs(path):
			return usagef("CMK %s: the path must be absolute, such as local:/etc/kmsfs/cmk", cmk)
		case isLocal, acs.MatchString(cmk), huawei.MatchString(cmk):
		default:
			return usagef("CMK %q is none of local:/absolute/path, acs:kms:REGION:ACCOUNT:key/ID and huawei:kms:REGION:PROJECT:key/ID", cmk)
		}
		seen[cmk] = true
	}
	return nil
}

// openKeyring is the one place that turns CMK URIs into keyrings. With any set, CMKs that cannot be opened are left
// out as long as one can: any one of them opens a volume.
func openKeyring(cmks []string, any bool) (keyring.Keyring, error) {
	var all []keyring.Keyring
	var failures []error
	ids := make(map[string]string)
	for _, cmk := range cmks {
		k, err := openCMK(cmk)
		if err != nil {
			failures = append(failures, fmt.Errorf("CMK %s: %w", cmk, err))
			continue
		}
		if other := ids[k.CMK()]; other != "" && !any {
			return nil, usagef("CMKs %s and %s are the same", other, cmk)
		}
		ids[k.CMK()] = cmk
		all = append(all, k)
	}
	if len(failures) > 0 && (!any || len(all) == 0) {
		return nil, fmt.Errorf("%w%w", errCMK, errors.Join(failures...))
	}
	return keyring.Multi(all...), nil
}

func openCMK(cmk string) (*local.Keyring, error) {
	path, ok := strings.CutPrefix(cmk, "local:")
	if !ok {
		return nil, errors.New("this provider is not in this build")
	}
	k, err := local.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w; create one with: kmsfs key new %s", err, path)
	}
	return k, err
}

// loopbackURL reports whether a URL is plain http to the machine itself.
func loopbackURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}
