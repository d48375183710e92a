package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kmsfs/kmsfs/header"
	"github.com/kmsfs/kmsfs/volume"
)

// A Summary counts what a manifest lists.
type Summary struct {
	Volume  header.ID
	Time    time.Time
	Entries int64
	Bytes   int64 // of ciphertext, read
}

// Build writes the manifest of a volume that nobody changes meanwhile. Entries that are not sound are given to fault, with their ciphertext
// path and their plaintext path, if it is known: nobody should vouch for them, so the error wraps [ErrUnsound] if there are any, and what was
// written is of no use.
func Build(ctx context.Context, v *volume.Volume, now time.Time, o Options, out io.Writer, fault func(path, plain string, err error)) (Summary, error) {
	head := Head{Volume: v.Header().FileID, Time: now.UTC().Truncate(time.Second), Plain: o.Plain}
	faults := 0
	for i, path := range headerFiles() {
		digest, err := volumeDigest(v, path)
		if err == nil && i > 0 && digest != head.Header {
			err = fmt.Errorf("%w: it differs from %s in more than a rewrap changes", ErrUnsound, headerFiles()[0])
		}
		if err != nil {
			faults++
			fault(path, "", err)
		}
		head.Header = digest
	}
	if _, err := out.Write(head.append(nil)); err != nil {
		return Summary{}, err
	}
	var line []byte
	entries, bytes, err := walk(ctx, v, o, func(f *found) error {
		switch {
		case errors.Is(f.err, ErrUnsound):
			faults++
			fault(f.Path, f.Plain, f.err)
			return nil
		case f.err != nil:
			return fmt.Errorf("%s: %w", Quote(f.Path), f.err)
		}
		line = f.Entry.append(line[:0], head.Plain)
		_, err := out.Write(line)
		return err
	})
	switch {
	case err != nil:
		return Summary{}, err
	case faults > 0:
		return Summary{}, fmt.Errorf("%w: %d entries", ErrUnsound, faults)
	}
	_, err = fmt.Fprintf(out, "end %d\n", entries)
	return Summary{head.Volume, head.Time, entries, bytes}, err
}
