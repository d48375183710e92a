package powercut

import "testing"

// TestKmsfs is the promise: power cuts cost nothing.
func TestKmsfs(t *testing.T) {
	for backing, n := range map[string]int{"ext4": 200, "xfs": 40} {
		t.Run(backing, func(t *testing.T) { none(t, randomly(t, stack{backing: backing, crypt: "kmsfs"}, number(t, n))) })
	}
}
