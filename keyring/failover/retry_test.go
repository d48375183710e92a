package failover

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/kmsfs/kmsfs/keyring/cloud"
)

func TestRetry(t *testing.T) {
	passing, lasting := &cloud.Error{Kind: cloud.Throttled}, &cloud.Error{Kind: cloud.NoPermission}
	for name, c := range map[string]struct {
		answers []error // the last one again and again
		calls   int
		want    error
	}{
		"well at once":   {[]error{nil}, 1, nil},
		"well in time":   {[]error{passing, passing, nil}, 3, nil},
		"never well":     {[]error{passing}, 4, passing},
		"no use to wait": {[]error{passing, lasting}, 2, lasting},
		// What a CMK says of several EDKs, of which one is another's.
		"well in time, another's EDK first": {[]error{errors.Join(lasting, passing), nil}, 2, nil},
		"well in time, another's EDK last":  {[]error{errors.Join(passing, lasting), nil}, 2, nil},
		"no use to wait for any":            {[]error{fmt.Errorf("twice: %w", errors.Join(lasting, lasting))}, 1, lasting},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			err := Retry(t.Context(), func(context.Context) error {
				calls++
				return c.answers[min(calls, len(c.answers))-1]
			})
			if calls != c.calls || !errors.Is(err, c.want) {
				t.Errorf("%s: %v after %d calls, want %v after %d", name, err, calls, c.want, c.calls)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	if err := Retry(ctx, func(context.Context) error { calls++; cancel(); return passing }); !errors.Is(err, passing) || calls != 1 {
		t.Errorf("given up: %v after %d calls", err, calls)
	}
}
