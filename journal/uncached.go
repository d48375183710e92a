package journal

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	uncachedSize  = 512 << 10 // bytes of the smallest read past the page cache: for less, reading ahead and the page cache are faster
	uncachedAlign = 4096      // bytes; the range and the memory of such a read are aligned to it
)

// ReadWithin reads n bytes from off on, and returns them somewhere within buf. If n is large, and buf has 12 KiB more, they may come past the page cache: the kernel has the
// plaintext of what is read in such pieces, and the ciphertext beside it would take as much memory again, and a copy.
func (f *File) ReadWithin(buf []byte, off int64, n int) ([]byte, error) {
	if p := f.readUncached(buf, off, n); p != nil {
		return p, nil
	}
	m, err := f.ReadAt(buf[:n], off)
	return buf[:m], err
}

// readUncached is ReadWithin past the page cache. It returns nil where that cannot be, or is not worth it: another read gets the bytes, or the error.
func (f *File) readUncached(buf []byte, off int64, n int) []byte {
	if n < uncachedSize || f.cached.Load() {
		return nil
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off+int64(n) > f.base || f.ext.overlaps(off, int64(n)) {
		return nil
	}
	start := off &^ (uncachedAlign - 1)
	lead := int(off - start)
	at := int(-uintptr(unsafe.Pointer(unsafe.SliceData(buf))) % uncachedAlign)
	end := at + (lead+n+uncachedAlign-1)&^(uncachedAlign-1)
	if end > len(buf) {
		return nil
	}
	m, err := f.disk.readUncached(buf[at:end], start)
	if err != nil {
		f.cached.Store(true)
	}
	if m < lead+n {
		return nil
	}
	return buf[at+lead:][:n]
}

// readUncached reads what p has room for, or up to the end of the file, past the page cache; memory and range are aligned. It reads nothing where the page cache has the range,
// or what is to be written of it. An error says that the file cannot be read so.
//
// The kernel writes what it has of a range before it reads that directly, so such a read finds what any other would.
func (d disk) readUncached(p []byte, off int64) (n int, err error) {
	var pages unix.Cachestat_t
	if err := unix.Cachestat(uint(d.fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(len(p))}, &pages, 0); err != nil {
		return 0, err
	}
	// The kernel reads ahead of a read through the page cache, so there will always be some pages.
	if pages.Dirty+pages.Writeback > 0 || pages.Cache*uint64(os.Getpagesize()) > uint64(len(p)/2) {
		return 0, nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(d.fd, &fs); err != nil {
		return 0, err
	}
	if fs.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return 0, unix.EOPNOTSUPP // the pages are those of a file below it, which cachestat does not count
	}
	var st unix.Statx_t
	if err := unix.Statx(d.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil {
		return 0, err
	}
	if max(st.Dio_offset_align-1, st.Dio_mem_align-1) >= uncachedAlign { // 0 is none
		return 0, unix.EOPNOTSUPP
	}
	// Such a descriptor is not kept: to open it takes a hundredth of what the read takes.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", d.fd), unix.O_RDONLY|unix.O_DIRECT|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	err = again(func() (err error) {
		n, err = unix.Pread(fd, p, off)
		return err
	})
	return max(n, 0), err
}
