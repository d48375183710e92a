package failover

import "context"

// Retry makes a call that is not at a CMK of a [Keyring] by the same rule: several times, on faults that pass.
func Retry(ctx context.Context, call func(context.Context) error) error {
	k := New(nil, Options{})
	all, cancel := context.WithTimeout(ctx, k.options.Deadline)
	defer cancel()
	for try := 1; ; try++ {
		err := call(all)
		if err == nil || try == k.options.Tries || !temporary(err) || !k.pause(all, try) {
			return err
		}
	}
}
