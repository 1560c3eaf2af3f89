package badgerkit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// ErrNoSpace is matched by errors that say that a database is not opened, or not written any more, because
// too little disk is free (Invariant B2: compaction on a full disk deletes data).
var ErrNoSpace = errors.New("too little free disk space")

// FreeBytes is how many bytes an ordinary user may still write on the file system that holds dir. dir
// must exist.
func FreeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// DirBytes adds up the sizes of the regular files below dir whose extension (with its dot) is one of
// exts, or of all of them without exts. A missing folder is empty; files that vanish meanwhile count
// nothing.
func DirBytes(dir string, exts ...string) (uint64, error) {
	var sum uint64
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.Type().IsRegular() || (len(exts) > 0 && !slices.Contains(exts, filepath.Ext(path))) {
			return nil
		}
		info, err := d.Info()
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		sum += uint64(info.Size())
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", dir, err)
	}
	return sum, nil
}
