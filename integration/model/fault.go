package model

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// A Fault makes one backing call of a volume's daemon fail.
type Fault interface {
	// Arm makes the n-th call from now on fail; none if n is 0.
	Arm(n int)
	// Disarm lets all calls pass; it returns how many there were since Arm, and which one failed, "" if none did.
	Disarm() (calls int, hit string)
	// Allowed reports whether an operation may fail with errno because of the call that failed.
	Allowed(errno unix.Errno) bool
	// Required reports whether an operation must fail because of it.
	Required(hit string) bool
}

// Faults runs a script, after a beginning without faults, for each n that pick chooses of the number of backing calls that the script makes: at
// the n-th, one fails. An operation may fail then, and nothing more is done but to look whether the volume holds what it held before that operation or
// what it would have held after it: as it is mounted, and mounted again. It returns how often an operation failed.
func Faults(c Config, beginning, script Script, f Fault, pick func(calls int) []int) (failed int, err error) {
	err = with(c.New, func(r *runner) error {
		calls, _, err := r.faulty(beginning, script, f, 0)
		if err != nil {
			return err
		}
		for _, n := range pick(calls) {
			_, reported, err := r.faulty(beginning, script, f, n)
			if err != nil {
				return fmt.Errorf("call %d of %d: %w", n, calls, err)
			}
			if reported {
				failed++
			}
		}
		return nil
	})
	return failed, err
}

// faulty runs the script once, with a fault at the n-th call.
func (r *runner) faulty(beginning, script Script, f Fault, n int) (calls int, reported bool, err error) {
	for _, o := range beginning {
		if err := r.do(o); err != nil {
			return 0, false, fmt.Errorf("%v: %w", o, err)
		}
	}
	r.maybe = nil
	f.Arm(n)
	defer f.Disarm()
	var failure error
	for _, o := range script {
		if err := r.do(o); err != nil {
			failure = fmt.Errorf("%v: %w", o, err)
			break
		}
	}
	maybe := r.maybe
	if failure == nil {
		failure = r.closeAll()
	}
	calls, hit := f.Disarm()
	if hit != "" {
		defer func() {
			if err != nil {
				err = fmt.Errorf("%s fails: %w", hit, err)
			}
		}()
	}
	var errno unix.Errno
	switch {
	case failure != nil && hit == "":
		return calls, false, failure
	case failure != nil && !(errors.As(failure, &errno) && f.Allowed(errno)):
		return calls, false, fmt.Errorf("wrong error: %w", failure)
	case failure == nil && f.Required(hit):
		return calls, false, errors.New("no operation reports it")
	}
	r.abandon() // after a failure, that close succeeds promises nothing
	c := either
	if failure == nil {
		c = exact
	}
	look := func() error {
		err := r.verify(c)
		if err != nil && maybe != nil {
			maybe()
			maybe = nil
			return r.verify(c)
		}
		return err
	}
	if err := look(); err != nil {
		return calls, false, fmt.Errorf("%w (after %v)", err, failure)
	}
	if err := r.vol.Unmount(); err != nil {
		return calls, false, err
	}
	if r.dir, err = r.vol.Mount(); err != nil {
		return calls, false, err
	}
	if err := look(); err != nil {
		return calls, false, fmt.Errorf("mounted again: %w (after %v)", err, failure)
	}
	return calls, failure != nil, r.empty()
}
