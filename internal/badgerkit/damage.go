package badgerkit

import (
	"errors"
	"fmt"
	"strings"
	"syscall"

	badger "github.com/dgraph-io/badger/v2"
)

// Guard runs open, which opens the database of opt, and tells damage from other trouble: when the
// database exists, every error that is not the environment's fault, and every panic of Badger over what it
// reads, comes back as an error that matches ErrCorrupt. Errors of the environment (I/O, a held lock, no
// space, no permission, another encryption key) are returned as they are.
//
// After a panic goroutines of Badger may be left behind; the folder must not be opened again by this
// process under the same options unless nothing writes in it (see Recover).
func Guard(opt badger.Options, open func() error) (err error) {
	present, err := exists(opt)
	if err != nil {
		return err
	}
	if !present {
		return open()
	}
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: Badger panics over what it reads: %v", ErrCorrupt, opt.Dir, p)
		}
	}()
	if err := open(); err != nil {
		if environmental(err) || errors.Is(err, ErrCorrupt) {
			return err
		}
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return nil
}

// environment are the system's errors that say nothing about the content of files.
var environment = [...]syscall.Errno{
	syscall.EIO, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE,
	syscall.EACCES, syscall.EPERM, syscall.EAGAIN, syscall.EINTR, syscall.EBUSY, syscall.ENODEV, syscall.ENXIO,
	syscall.ESTALE, syscall.ETIMEDOUT, syscall.EFBIG, syscall.ENOTDIR, syscall.ENAMETOOLONG, syscall.ENOENT,
}

// environmental says whether err has a cause outside the files' content. Taking a failing disk for damage
// would throw a node's data away that a restart could read.
func environmental(err error) bool {
	if errors.Is(err, ErrNoSpace) || errors.Is(err, badger.ErrEncryptionKeyMismatch) ||
		errors.Is(err, badger.ErrInvalidEncryptionKey) {
		return true
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return true
	}
	// Badger flattens most causes into text, so that only the text is left to tell them by.
	text := err.Error()
	for _, e := range environment {
		if strings.Contains(text, e.Error()) {
			return true
		}
	}
	return false
}
