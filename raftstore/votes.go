package raftstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// The file with the second copy of the stable values. All numbers are little endian:
//
//	magic (8 bytes), format version (4), length of what is between it and the checksum (4),
//	sequence number (8), number of values (4),
//	per value, in the order of the keys: length of the key (4), key, length of the value (4), value,
//	CRC-32C of everything before it (4)
const (
	votesName         = "votes"
	votesTmpSuffix    = ".tmp"
	votesMagic        = "SETTVOTE"
	votesVersion      = 1
	votesPreludeBytes = 8 + 4 + 4

	// maxVotesBytes bounds the file. raft keeps three short values in it.
	maxVotesBytes = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// votes is the content of the file.
type votes struct {
	seq    uint64 // counts the writes
	values map[string][]byte
}

// with is v after one more write.
func (v votes) with(key, val []byte) votes {
	next := votes{seq: v.seq + 1, values: maps.Clone(v.values)}
	if next.values == nil {
		next.values = make(map[string][]byte)
	}
	next.values[string(key)] = slices.Clone(val)
	return next
}

func (v votes) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, 256), votesMagic...)
	b = le.AppendUint32(b, votesVersion)
	b = le.AppendUint32(b, 0)
	b = le.AppendUint64(b, v.seq)
	b = le.AppendUint32(b, uint32(len(v.values)))
	for _, key := range slices.Sorted(maps.Keys(v.values)) {
		b = le.AppendUint32(b, uint32(len(key)))
		b = append(b, key...)
		b = le.AppendUint32(b, uint32(len(v.values[key])))
		b = append(b, v.values[key]...)
	}
	le.PutUint32(b[12:], uint32(len(b)-votesPreludeBytes))
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decodeVotes is the reverse of encode. Every error matches ErrCorrupt, except that of a sound file in a
// format that is not known here.
func decodeVotes(b []byte) (votes, error) {
	bad := func(what string) (votes, error) { return votes{}, fmt.Errorf("%w: %s", ErrCorrupt, what) }
	le := binary.LittleEndian
	if len(b) < votesPreludeBytes+4 || string(b[:8]) != votesMagic {
		return bad("not a file of votes")
	}
	body, sum := b[:len(b)-4], le.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return bad("the checksum is wrong")
	}
	if v := le.Uint32(b[8:]); v != votesVersion {
		return votes{}, fmt.Errorf("the format is %d; this version of sett reads format %d", v, votesVersion)
	}
	if uint64(le.Uint32(b[12:])) != uint64(len(body)-votesPreludeBytes) || len(body) < votesPreludeBytes+12 {
		return bad("the length is wrong")
	}
	v := votes{seq: le.Uint64(b[votesPreludeBytes:]), values: make(map[string][]byte)}
	n := le.Uint32(b[votesPreludeBytes+8:])
	body = body[votesPreludeBytes+12:]
	ok := true
	field := func() []byte {
		if len(body) < 4 || uint64(le.Uint32(body)) > uint64(len(body)-4) {
			ok = false
			return nil
		}
		size := int(le.Uint32(body))
		f := body[4 : 4+size]
		body = body[4+size:]
		return f
	}
	for ; n > 0 && ok; n-- {
		key := string(field())
		if _, again := v.values[key]; again {
			ok = false
		}
		v.values[key] = slices.Clone(field())
	}
	if !ok || len(body) > 0 {
		return bad("the values are cut off or too many")
	}
	return v, nil
}

// votesFile is the file in a folder.
type votesFile struct{ dir string }

func (f votesFile) path() string { return filepath.Join(f.dir, votesName) }

// read is the content; found is false if there is no file. What a write that was cut off has left is
// removed.
func (f votesFile) read() (v votes, found bool, err error) {
	if err := os.Remove(f.path() + votesTmpSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
		return votes{}, false, err
	}
	info, err := os.Stat(f.path())
	if errors.Is(err, os.ErrNotExist) {
		return votes{}, false, nil
	}
	if err != nil {
		return votes{}, false, err
	}
	if info.Size() > maxVotesBytes {
		return votes{}, false, fmt.Errorf("%s: %w: it has %d bytes", f.path(), ErrCorrupt, info.Size())
	}
	b, err := os.ReadFile(f.path())
	if err != nil {
		return votes{}, false, err
	}
	if v, err = decodeVotes(b); err != nil {
		return votes{}, false, fmt.Errorf("%s: %w", f.path(), err)
	}
	return v, true, nil
}

// write replaces the file. It is on stable storage when write returns nil.
func (f votesFile) write(content []byte) error {
	tmp := f.path() + votesTmpSuffix
	w, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = w.Write(content)
	if err == nil {
		err = w.Sync()
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return err
	}
	if err := os.Rename(tmp, f.path()); err != nil {
		return err
	}
	return syncDir(f.dir)
}
