package badgerkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	badger "github.com/dgraph-io/badger/v2"
)

func TestGuard(t *testing.T) {
	there := t.TempDir()
	fill(t, there, 10).Close()
	for _, c := range []struct {
		name    string
		dir     string
		open    func() error
		corrupt bool
	}{
		{"success", there, func() error { return nil }, false},
		{"decoding", there, func() error { return errors.New("binary: varint overflows a 64-bit integer") }, true},
		{"panic", there, func() error { return fmt.Errorf("%d", make([]byte, 1)[len(there)]) }, true},
		{"damage, told already", there, func() error { return fmt.Errorf("x: %w", ErrCorrupt) }, true},
		{"nothing there yet", t.TempDir(), func() error { return errors.New("a bad option") }, false},
		{"I/O", there, func() error { return &os.PathError{Op: "read", Path: "f", Err: syscall.EIO} }, false},
		{"I/O in Badger's words", there, func() error { return fmt.Errorf("Unable to replay. Error=%v", syscall.EIO) }, false},
		{"full disk in Badger's words", there, func() error { return fmt.Errorf("flush error: %+v", syscall.ENOSPC) }, false},
		{"no space", there, func() error { return fmt.Errorf("x: %w", ErrNoSpace) }, false},
		{"another key", there, func() error { return badger.ErrEncryptionKeyMismatch }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := Guard(testOptions(c.dir), c.open)
			if errors.Is(err, ErrCorrupt) != c.corrupt || (err == nil) != (c.name == "success") {
				t.Errorf("got %v, corrupt should be %v", err, c.corrupt)
			}
		})
	}
	// A real lock.
	db, err := badger.Open(testOptions(there))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := Recover(testOptions(there)); err == nil || errors.Is(err, ErrCorrupt) {
		t.Errorf("recovery of a database that is open: %v", err)
	}
}

// TestManifestLengths: a damaged length makes Badger take the rest of the manifest for cut off, silently.
func TestManifestLengths(t *testing.T) {
	from := t.TempDir()
	for range 3 { // each leaves a table
		fill(t, from, 100).Close()
	}
	const magicBytes = 8
	whole, err := os.ReadFile(filepath.Join(from, badger.ManifestFilename))
	if err != nil {
		t.Fatal(err)
	}
	dir := crashed(t, from)
	path := filepath.Join(dir, badger.ManifestFilename)
	changes := 0
	for at := magicBytes; at+8 <= len(whole); changes++ {
		length := int(whole[at+3])
		for longer := 1; length+longer <= 255 && length+longer <= len(whole); longer += 3 {
			b := bytes.Clone(whole)
			b[at+3] = byte(length + longer)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := CheckTables(dir, false); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("length of the change at %d is %d instead of %d: %v", at, length+longer, length, err)
			}
		}
		at += 8 + length
	}
	if changes < 3 {
		t.Fatalf("%d changes", changes)
	}
	// What a crash leaves of the last change is ordinary.
	for cut := range 6 {
		if err := os.WriteFile(path, append(bytes.Clone(whole), whole[magicBytes:magicBytes+9+cut]...), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckTables(dir, false); err != nil {
			t.Fatalf("%d bytes of a change: %v", 9+cut, err)
		}
	}
}

// TestValueLogDamage: every flipped byte of a log that was synced write by write is told from the end that
// a crash leaves.
func TestValueLogDamage(t *testing.T) {
	dir := t.TempDir()
	db := fill(t, dir, 30)
	if err := db.Sync(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "000000.vlog"))
	if err != nil {
		t.Fatal(err)
	}
	synced, unsynced := logCheck{newest: true, synced: true}, logCheck{newest: true}
	if at, what := synced.damage(b); what != "" || at != len(b) {
		t.Fatalf("sound, but at %d of %d: %s", at, len(b), what)
	}
	for i := logHeaderBytes; i < len(b); i++ {
		for _, mask := range []byte{0xff, 0x80, 0x40, 0x01} {
			d := bytes.Clone(b)
			d[i] ^= mask
			if _, what := synced.damage(d); what == "" {
				t.Errorf("byte %d of %d ^ %#x goes unnoticed", i, len(b), mask)
			}
		}
	}
	for size := logHeaderBytes; size < len(b); size++ {
		for _, c := range []logCheck{synced, unsynced} {
			if at, what := c.damage(b[:size]); what != "" {
				t.Fatalf("cut at %d: %d, %s", size, at, what)
			}
		}
		grown := append(bytes.Clone(b[:size]), make([]byte, 200)...)
		if at, what := synced.damage(grown); what != "" {
			t.Fatalf("cut at %d, then zeros: %d, %s", size, at, what)
		}
	}
	// Without syncs anything may be missing, but a length of gigabytes is never taken for one.
	hole := bytes.Clone(b)
	clear(hole[len(b)/3 : len(b)/2])
	if at, what := unsynced.damage(hole); what != "" {
		t.Errorf("unsynced with a hole: %d, %s", at, what)
	}
	if _, what := synced.damage(hole); what == "" {
		t.Error("a hole in a synced log goes unnoticed")
	}
	copy(hole[logHeaderBytes+3:], []byte{0xff, 0xff, 0xff, 0xff, 0x0f})
	if _, what := unsynced.damage(hole); what == "" {
		t.Error("a value of 4 GiB is believed")
	}
	if _, what := (logCheck{synced: true}).damage(b[:len(b)-1]); what == "" {
		t.Error("a file that is followed by others may end anywhere")
	}
}
