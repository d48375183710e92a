package powercut

import "testing"

// TestKmsfs is the promise: power cuts cost nothing.
func TestKmsfs(t *testing.T) {
	for _, b := range []struct {
		backing string
		cuts    int
	}{{"ext4", 200}, {"xfs", 40}} {
		t.Run(b.backing, func(t *testing.T) {
			none(t, randomly(t, stack{backing: b.backing, crypt: "kmsfs"}, number(t, b.cuts)))
		})
	}
}
