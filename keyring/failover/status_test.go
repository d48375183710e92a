package failover

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestGivingUpLeavesNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := newFake("a"), newFake("b")
		k := New([]CMK{a, b}, Options{OnEvent: func(e Event) { t.Errorf("event %v", e) }})
		_, edks := wrap(t, k)
		a.set(-1, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		if _, err := k.DecryptDataKey(ctx, edks, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want DeadlineExceeded", err)
		}
		synctest.Wait()
		if s := k.Status()[0]; s.Failed != 0 || s.Skipped != nil {
			t.Errorf("status %+v", s)
		}
	})
}

func TestEventsAndStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var lines []string
		a, b := newFake("a"), newFake("b")
		k := New([]CMK{a, b}, Options{OnEvent: func(e Event) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, e.String()+" "+e.LogValue().String())
		}})
		dk, edks := wrap(t, k)
		a.set(0, nil, status(501))
		unwrap(t, k, edks, dk)
		time.Sleep(11 * time.Second)
		unwrap(t, k, edks, dk)
		mu.Lock()
		defer mu.Unlock()
		if len(lines) != 3 {
			t.Fatalf("%d lines: %q", len(lines), lines)
		}
		for i, want := range [][]string{{"fake:a", "failed", "Try", "501", "Some.Code"}, {"fake:a", "skipped for 10s"}, {"fake:a", "answers again"}} {
			for _, w := range want {
				if !strings.Contains(lines[i], w) || strings.Contains(lines[i], "\n") {
					t.Errorf("line %d is %q, want %q in it", i, lines[i], w)
				}
			}
		}
		s := k.Status()
		if len(s) != 2 || s[0].CMK != "fake:a" || s[0].OK != 2 || s[0].Failed != 1 || s[0].Last.Error != "" || s[0].Last.Call != "decrypt" || s[1].OK != 2 {
			t.Errorf("status %+v", s)
		}
	})
}
