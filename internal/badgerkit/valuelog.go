package badgerkit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"runtime/debug"
	"strconv"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/dgraph-io/badger/v2/y"
	"golang.org/x/sys/unix"
)

const (
	// logHeaderBytes is what stands before the first entry of a value log: key id and base vector.
	logHeaderBytes = 20

	// replayedLogs is how many of the newest files a replay can reach. With LogRotatesToFlush 1 a memtable
	// holds what is in two files at most, and NumMemtables+2 of them can be unwritten.
	replayedLogs = 8

	// replayedBytes is more than a replay reaches where all values are in the memtables, however big the
	// files are.
	replayedBytes = 512 << 20

	// maxLogKeyBytes and maxLogValueBytes bound what is ever written here; Badger allocates whatever a
	// damaged length says, up to 12 GiB.
	maxLogKeyBytes   = 1 << 16
	maxLogValueBytes = 64 << 20

	// missingTailBytes of zeros at the end of a file, which a transaction's end never is, say that the file
	// grew for the last write before all of it came.
	missingTailBytes = 64

	// endKey is the key of the entry that ends a transaction; its value is the timestamp in decimal.
	endKey = "!badger!txn"
)

// checkValueLogs looks at the value-log files that a replay may read, before Badger does: Badger takes the
// first entry that it cannot read for the torn end of the log, and cuts off whatever follows it.
//
// With synced, every write was made durable before the next one began. A crash can then leave nothing
// behind but a beginning of the last write, so anything else is damage: acknowledged entries would be cut
// off. Without it any part of the unsynced end may be missing after a power cut; only lengths that Badger
// fails over, or allocates gigabytes for, are damage then.
func checkValueLogs(opt badger.Options, synced bool) error {
	logs, err := valueLogs(opt)
	if err != nil {
		return err
	}
	looked := uint64(0)
	for i := len(logs) - 1; i >= max(0, len(logs)-replayedLogs); i-- {
		if !synced && looked > replayedBytes {
			return nil
		}
		size, err := checkLogFile(logs[i], logCheck{newest: i == len(logs)-1, synced: synced})
		if err != nil {
			return err
		}
		looked += uint64(size)
	}
	return nil
}

// logCheck says what a file must hold up to.
type logCheck struct {
	newest bool // it may end in the middle of a write
	synced bool
}

// checkLogFile checks one file and says how big it is.
func checkLogFile(path string, c logCheck) (size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size = info.Size()
	if size <= logHeaderBytes {
		return size, nil // cut off while it was made
	}
	if size > math.MaxUint32 { // Badger ends the process over it
		return size, fmt.Errorf("%w: value log %s has %d bytes", ErrCorrupt, path, size)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return size, fmt.Errorf("map %s: %w", path, err)
	}
	defer unix.Munmap(b) //nolint:errcheck // nothing depends on it
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("read value log %s: %v: %w", path, p, unix.EIO)
		}
	}()
	at, what := c.damage(b)
	if what != "" {
		return size, fmt.Errorf("%w: value log %s at offset %d of %d: %s", ErrCorrupt, path, at, size, what)
	}
	return size, nil
}

// damage finds what is wrong with the content of a file, and where; what is empty if nothing is.
func (c logCheck) damage(b []byte) (at int, what string) {
	at = logHeaderBytes
	for at < len(b) {
		size, state := logEntry(b[at:])
		if state != entryWhole {
			return at, c.judge(b, at, state)
		}
		at += size
	}
	return at, ""
}

// judge says what is wrong with the end of a file, from the first entry that is not whole on.
func (c logCheck) judge(b []byte, at int, state entryState) string {
	rest := b[at:]
	switch {
	case state == entryAbsurd:
		return "the lengths of an entry are impossible"
	case !c.synced:
		return ""
	case !c.newest:
		return "an entry cannot be read although newer files follow"
	case len(bytes.TrimLeft(rest, "\x00")) == 0:
		return "" // a file that grew before its content came
	case state == entryBad && len(rest)-len(bytes.TrimRight(rest, "\x00")) < missingTailBytes:
		return "the checksum of an entry is wrong"
	case endsTransaction(b):
		return "an entry cannot be read although its write came to its end"
	}
	for i := 1; i < len(rest); i++ {
		if !likelyEntry(rest[i:]) {
			continue
		}
		if _, state := logEntry(rest[i:]); state == entryWhole {
			return "an entry cannot be read although newer ones follow"
		}
	}
	return ""
}

// entryState is what is to be said of the entry at the beginning of some bytes.
type entryState int

const (
	entryWhole  entryState = iota
	entryCut               // it goes on behind the bytes
	entryBad               // it is there and its checksum is wrong
	entryAbsurd            // its header is one that nobody wrote
)

// logEntry judges the entry at the beginning of b: flags (2 bytes), then as varints the lengths of key and
// value and the expiry, then key, value and CRC-32C.
func logEntry(b []byte) (size int, state entryState) {
	var fields [3]uint64
	at := 2
	for i := range fields {
		if at >= len(b) {
			return 0, entryCut
		}
		v, n := binary.Uvarint(b[at:])
		if n < 0 {
			return 0, entryAbsurd
		}
		if n == 0 {
			return 0, entryCut
		}
		fields[i] = v
		at += n
	}
	if fields[0] > maxLogKeyBytes || fields[1] > maxLogValueBytes {
		return 0, entryAbsurd
	}
	end := at + int(fields[0]+fields[1])
	if end+crc32.Size > len(b) {
		return 0, entryCut
	}
	if crc32.Checksum(b[:end], y.CastagnoliCrcTable) != binary.BigEndian.Uint32(b[end:]) {
		return 0, entryBad
	}
	return end + crc32.Size, entryWhole
}

// likelyEntry keeps the search for entries behind damage from computing a checksum at every byte: flags as
// they are written here (deletion, in a transaction, its end), and a key that holds a timestamp and
// something before it.
func likelyEntry(b []byte) bool {
	const flags, stampBytes = 0xC1, 8
	return len(b) > 2 && b[0]&^flags == 0 && b[1] == 0 && b[2] > stampBytes
}

// endsTransaction says whether the last bytes of b are those that end a transaction, whatever its header
// says: key, timestamp, the same timestamp in decimal, checksum.
func endsTransaction(b []byte) bool {
	const stampBytes = 8
	for digits := 1; digits <= 20; digits++ {
		at := len(b) - crc32.Size - digits - stampBytes - len(endKey)
		if at < 0 {
			return false
		}
		if string(b[at:at+len(endKey)]) != endKey {
			continue
		}
		at += len(endKey)
		stamp := math.MaxUint64 - binary.BigEndian.Uint64(b[at:])
		if string(b[at+stampBytes:len(b)-crc32.Size]) == strconv.FormatUint(stamp, 10) {
			return true
		}
	}
	return false
}
