package badgerkit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/options"
	"github.com/dgraph-io/badger/v2/pb"
	"github.com/dgraph-io/badger/v2/table"
	"github.com/dgraph-io/badger/v2/y"
)

const (
	// maxTableFooterBytes bounds the encoded checksum at the end of a table: two small numbers.
	maxTableFooterBytes = 64

	// registrySanity is the text behind the initialisation vector of a key registry.
	registrySanity      = "Hello Badger"
	registryIVBytes     = 16
	maxRegistryKeyBytes = 4 << 10

	// verifyWorkers is how many tables are read at once; more do not make a disk faster.
	verifyWorkers = 3
)

// verifyTables reads every table that the manifest names and checks the checksums of its index and of all
// blocks (Invariant B8). It is done here, before Badger opens anything, because Badger opens tables in
// goroutines of its own and over a damaged footer or block it panics there or ends the process.
func verifyTables(opt badger.Options) error {
	manifest, err := readManifest(opt.Dir)
	if err != nil {
		return err
	}
	keys, err := dataKeys(opt, manifest)
	if err != nil {
		return err
	}
	ids := make([]uint64, 0, len(manifest.Tables))
	for id := range manifest.Tables {
		ids = append(ids, id)
	}
	slices.Sort(ids)

	next := make(chan uint64)
	errs := make([]error, verifyWorkers)
	var workers sync.WaitGroup
	for w := range errs {
		workers.Go(func() {
			for id := range next {
				if errs[w] != nil {
					continue
				}
				t := manifest.Tables[id]
				o := table.Options{LoadingMode: options.MemoryMap, ChkMode: options.OnTableRead, Compression: t.Compression}
				if t.KeyID != 0 {
					if o.DataKey = keys[t.KeyID]; o.DataKey == nil {
						errs[w] = fmt.Errorf("%w: the key of table %d is not in the key registry of %s", ErrCorrupt, id, opt.Dir)
						continue
					}
				}
				errs[w] = verifyTable(table.NewFilename(id, opt.Dir), o)
			}
		})
	}
	for _, id := range ids {
		next <- id
	}
	close(next)
	workers.Wait()
	return errors.Join(errs...)
}

// verifyTable checks one table, in the goroutine of the caller.
func verifyTable(path string, o table.Options) (err error) {
	// A page of the mapped file that the disk cannot read is a fault, which ends the process otherwise.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			if fault, ok := p.(interface{ Addr() uintptr }); ok {
				err = fmt.Errorf("read table %s: the disk does not deliver the page at %#x", path, fault.Addr())
				return
			}
			err = fmt.Errorf("%w: table %s: %v", ErrCorrupt, path, p)
		}
	}()
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := checkFooter(f); err != nil {
		return errors.Join(err, f.Close())
	}
	t, err := table.OpenTable(f, o) // takes f over
	if err != nil {
		if environmental(err) {
			return fmt.Errorf("read table %s: %w", path, err)
		}
		return fmt.Errorf("%w: table %s: %w", ErrCorrupt, path, err)
	}
	return t.Close()
}

// checkFooter checks what is at the end of a table: index, its length, its checksum, the checksum's length.
// Badger ends the process where this returns an error.
func checkFooter(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	end := info.Size()
	bad := func(what string) error { return fmt.Errorf("%w: table %s: %s", ErrCorrupt, f.Name(), what) }
	before := func(n int64) ([]byte, error) {
		if n < 0 || n > end {
			return nil, bad("a length at its end is wrong")
		}
		end -= n
		b := make([]byte, n)
		if _, err := f.ReadAt(b, end); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return b, nil
	}
	b, err := before(4)
	if err != nil {
		return err
	}
	n := int64(y.BytesToU32(b))
	if n > maxTableFooterBytes {
		return bad("the length of its checksum is wrong")
	}
	if b, err = before(n); err != nil {
		return err
	}
	var sum pb.Checksum
	if err := sum.Unmarshal(b); err != nil {
		return bad("its checksum cannot be read")
	}
	if sum.Algo != pb.Checksum_CRC32C && sum.Algo != pb.Checksum_XXHash64 {
		return bad("its checksum is of an unknown kind")
	}
	if b, err = before(4); err != nil {
		return err
	}
	if b, err = before(int64(y.BytesToU32(b))); err != nil {
		return err
	}
	if err := y.VerifyChecksum(b, &sum); err != nil {
		return bad("the checksum of its index is wrong")
	}
	return nil
}

// readManifest replays the manifest of dir and checks its end.
func readManifest(dir string) (badger.Manifest, error) {
	path := filepath.Join(dir, badger.ManifestFilename)
	f, err := os.Open(path)
	if err != nil {
		return badger.Manifest{}, err
	}
	defer f.Close()
	manifest, end, err := badger.ReplayManifestFile(f)
	if err != nil {
		if environmental(err) {
			return manifest, fmt.Errorf("read manifest of %s: %w", dir, err)
		}
		return manifest, fmt.Errorf("%w: read manifest of %s: %w", ErrCorrupt, dir, err)
	}
	info, err := f.Stat()
	if err != nil {
		return manifest, err
	}
	rest := make([]byte, max(0, info.Size()-end))
	if _, err := f.ReadAt(rest, end); err != nil && !errors.Is(err, io.EOF) {
		return manifest, err
	}
	if wholeChange(rest) {
		return manifest, fmt.Errorf("%w: a length in the manifest of %s is wrong at offset %d", ErrCorrupt, dir, end)
	}
	return manifest, nil
}

// wholeChange says whether rest, the end of a manifest that Badger takes for a change cut off by a crash,
// begins with a whole change whose length is damaged. Badger would silently drop it and all that follow,
// and delete the tables they name.
func wholeChange(rest []byte) bool {
	if len(rest) < 8 {
		return false
	}
	want, sum := binary.BigEndian.Uint32(rest[4:]), uint32(0)
	if sum == want {
		return true // the empty change that a manifest begins with
	}
	for i := 8; i < len(rest); i++ {
		if sum = crc32.Update(sum, y.CastagnoliCrcTable, rest[i:i+1]); sum == want {
			return true
		}
	}
	return false
}

// dataKeys reads the key registry of opt, checking its form. Without encryption there is nothing in it
// that is needed, but Badger does not open without it being sound.
func dataKeys(opt badger.Options, manifest badger.Manifest) (map[uint64]*pb.DataKey, error) {
	path := filepath.Join(opt.Dir, badger.KeyRegistryFileName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	bad := func(what string) error { return fmt.Errorf("%w: key registry %s: %s", ErrCorrupt, path, what) }
	if len(b) < registryIVBytes+len(registrySanity) {
		return nil, bad("too short")
	}
	iv, sanity := b[:registryIVBytes], b[registryIVBytes:registryIVBytes+len(registrySanity)]
	b = b[registryIVBytes+len(registrySanity):]
	if len(opt.EncryptionKey) > 0 {
		if sanity, err = y.XORBlock(sanity, opt.EncryptionKey, iv); err != nil {
			return nil, err
		}
	}
	if !bytes.Equal(sanity, []byte(registrySanity)) {
		encrypted, err := encrypted(opt, manifest)
		if err != nil {
			return nil, err
		}
		if len(opt.EncryptionKey) == 0 && !encrypted {
			return nil, bad("its beginning is wrong")
		}
		// The wrong key and a damaged registry look alike, and the wrong key is the likelier.
		return nil, fmt.Errorf("key registry %s: %w", path, badger.ErrEncryptionKeyMismatch)
	}
	keys := make(map[uint64]*pb.DataKey)
	for len(b) > 0 {
		if len(b) < 8 {
			return nil, bad("cut off")
		}
		n, sum := uint64(binary.BigEndian.Uint32(b)), binary.BigEndian.Uint32(b[4:])
		if b = b[8:]; n > maxRegistryKeyBytes || n > uint64(len(b)) {
			return nil, bad("a length is wrong")
		}
		if crc32.Checksum(b[:n], y.CastagnoliCrcTable) != sum {
			return nil, bad("a checksum is wrong")
		}
		key := new(pb.DataKey)
		if err := key.Unmarshal(b[:n]); err != nil {
			return nil, bad("a key cannot be read")
		}
		if len(opt.EncryptionKey) > 0 {
			if len(key.Iv) != registryIVBytes {
				return nil, bad("a key cannot be read")
			}
			if key.Data, err = y.XORBlock(key.Data, opt.EncryptionKey, key.Iv); err != nil {
				return nil, bad("a key cannot be decrypted")
			}
		}
		keys[key.KeyId] = key
		b = b[n:]
	}
	return keys, nil
}

// encrypted says whether any file of the database was written with a key.
func encrypted(opt badger.Options, manifest badger.Manifest) (bool, error) {
	for _, t := range manifest.Tables {
		if t.KeyID != 0 {
			return true, nil
		}
	}
	logs, err := valueLogs(opt)
	if err != nil {
		return false, err
	}
	for _, path := range logs {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		var id [8]byte
		_, err = io.ReadFull(f, id[:])
		f.Close()
		if err == nil && binary.BigEndian.Uint64(id[:]) != 0 {
			return true, nil
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
	}
	return false, nil
}

// valueLogs lists the value-log files of opt, oldest first.
func valueLogs(opt badger.Options) ([]string, error) {
	dir := opt.ValueDir
	if dir == "" {
		dir = opt.Dir
	}
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	if err != nil {
		return nil, err
	}
	slices.Sort(logs) // their numbers have six digits
	return logs, nil
}
