package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/keyring"
	"github.com/kmsfs/kmsfs/keyring/cloud"
)

// unbound finds out which of cmks, which have wrapped the data key of a new volume, do not bind the encryption context: each that wraps with a call is asked once to unwrap under another context. It
// returns what to warn of. The header binds the context whatever a KMS does, so a volume is made all the same. RSA and local CMKs have the context in what they wrap, and are not asked.
func (s *keyrings) unbound(ctx context.Context, cmks []string, h *header.Header) []string {
	another := keyring.EncryptionContext{"kmsfs": header.NewID().String()}
	found := make([]string, len(cmks))
	var group sync.WaitGroup
	for i, cmk := range cmks {
		k := s.opened[cmk]
		if k == nil || s.isRSA(cmk) {
			continue
		}
		group.Go(func() {
			dk, err := k.DecryptDataKey(ctx, h.EDKs, another)
			dk.Wipe()
			e := new(cloud.Error)
			switch {
			case err == nil:
				found[i] = fmt.Sprintf("CMK %s does not bind the encryption context: its region ignores it. The headers of the volume bind it; but whoever may use the CMK can unwrap its data key under any", cmk)
			case errors.As(err, &e) && e.Kind == cloud.NotWrapped: // as it should be
			default:
				found[i] = fmt.Sprintf("whether CMK %s binds the encryption context was not found out (%s); kmsfs keyring check tells", cmk, oneLine(err.Error()))
			}
		})
	}
	group.Wait()
	var warnings []string
	for _, w := range found {
		if w != "" {
			warnings = append(warnings, w)
		}
	}
	return warnings
}

// costPerFile says what it costs that every file has a data key of its own, wrapped by cmks.
func (s *keyrings) costPerFile(cmks []string) string {
	calls := make(map[string]int) // by cloud: when a file gets its first bytes
	wraps, makes, opens := 0, 0, 0
	for i, cmk := range cmks {
		scheme, _, _ := strings.Cut(cmk, ":")
		if s.opened[cmk] == nil {
			continue
		}
		if i == 0 {
			opens = 1
		}
		if s.isRSA(cmk) {
			continue
		}
		calls[scheme]++
		if i == 0 {
			makes = 1
		} else {
			wraps++
		}
	}
	text := "every file has a data key of its own"
	if makes+wraps+opens == 0 {
		return text + "; local CMKs make no calls for that"
	}
	text += fmt.Sprintf(": when it gets its first bytes, %d data-key calls and %d wraps; when it is opened and its key is not known any more, %d unwraps", makes, wraps, opens)
	for _, scheme := range []string{cloud.Alibaba, cloud.Huawei} {
		if n := calls[scheme]; n > 0 {
			rate := providerOf(scheme).rate
			text += fmt.Sprintf("\nat most %d calls a second go to %s, so at most %g such files a second get their first bytes", rate, providerOf(scheme).name, float64(rate)/float64(n))
		}
	}
	return text + "\nwhile one of the CMKs cannot be asked, no file gets its first bytes (EIO)"
}
