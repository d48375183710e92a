package integration

import (
	"maps"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// TestPosix runs go-fuse's conformance suite, whole, on names of both kinds.
func TestPosix(t *testing.T) {
	for mode, args := range map[string][]string{"SealedNames": nil, "PlaintextNames": {"--plaintext-names"}} {
		t.Run(mode, func(t *testing.T) {
			for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
				t.Run(name, func(t *testing.T) {
					posixtest.All[name](t, newVolume(t, args...).mount(t))
				})
			}
		})
	}
}
