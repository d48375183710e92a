package powercut

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// A Cutter makes the images that power cuts at ever later positions of a record leave.
type Cutter struct {
	durable *os.File // what the disk held for sure at the last cut
	records []record
	applied int // how many records durable holds, all before a flush
}

// NewCutter starts from base, the image as it was before the first record; it keeps its own copy of it at work.
func NewCutter(base, work string, records []record) (*Cutter, error) {
	if err := copySparse(base, work); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(work, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &Cutter{durable: f, records: records}, nil
}

// Close removes what the cutter keeps.
func (c *Cutter) Close() error {
	return errors.Join(c.durable.Close(), os.Remove(c.durable.Name()))
}

// Cut writes to path the image that a power cut after position records leaves, position being no smaller than the last one. Each write
// after the last flush is kept with a chance that rng draws first: none and all are as likely as some.
func (c *Cutter) Cut(position int, path string, rng *rand.Rand) error {
	flushed := c.applied
	for i := c.applied; i < position; i++ {
		if c.records[i].data == nil {
			flushed = i
		}
	}
	for ; c.applied < flushed; c.applied++ {
		if err := c.records[c.applied].apply(c.durable); err != nil {
			return err
		}
	}
	if err := copySparse(c.durable.Name(), path); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	chance := [...]float64{0, 0.1, 0.5, 0.9, 1}[rng.IntN(5)]
	for _, r := range c.records[flushed:position] {
		if rng.Float64() < chance {
			if err := r.apply(f); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r record) apply(f *os.File) error {
	if len(r.data) == 0 {
		return nil
	}
	_, err := f.WriteAt(r.data, r.off)
	return err
}

// copySparse copies the parts of a file that are not holes.
func copySparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); ; {
		start, err := src.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		} else if err != nil {
			return err
		}
		if off, err = src.Seek(start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, off-start)); err != nil {
			return fmt.Errorf("copy %s: %w", from, err)
		}
	}
}
