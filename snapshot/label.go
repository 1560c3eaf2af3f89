package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"time"

	"github.com/settkv/sett/kv"
)

// Label says exactly what a database contains. It is both the label of a Raft
// snapshot on disk and the header of a stream.
type Label struct {
	// Index and Term are of the last Raft entry whose effects are included.
	Index uint64
	Term  uint64
	// Configuration is the Raft configuration in force at Index, as raft encodes it,
	// and ConfigurationIndex the entry that set it.
	Configuration      []byte
	ConfigurationIndex uint64
	// Revision is the store's revision; CompactRevision is the oldest one whose
	// history is whole.
	Revision        uint64
	CompactRevision uint64
	// State is the replicated state that is kept outside the database, opaque here.
	State []byte
	// ClusterID and ServerID tell whose database it is.
	ClusterID string
	ServerID  string
	// Time is when the label was made, in nanoseconds; for people.
	Time time.Time
}

const (
	labelMagic   = "SETTLABL"
	labelVersion = 1
	labelName    = "label"
	// labelPreludeBytes is magic, version and payload length.
	labelPreludeBytes = 8 + 4 + 4

	// maxStateBytes bounds Label.State: staged pieces of big commands are in it.
	maxStateBytes = 128 << 20
	// maxSmallBytes bounds each of the label's other fields of variable length.
	maxSmallBytes = 1 << 20
	// maxLabelBytes bounds an encoded label.
	maxLabelBytes = maxStateBytes + 4*maxSmallBytes
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func corrupt(format string, args ...any) *kv.Error {
	return kv.Errorf(kv.CodeCorruption, format, args...)
}

// appendLabel appends the encoding of l: six fixed fields, then four of variable
// length, each with its length before it.
func appendLabel(dst []byte, l Label) ([]byte, error) {
	if len(l.State) > maxStateBytes || len(l.Configuration) > maxSmallBytes ||
		len(l.ClusterID) > maxSmallBytes || len(l.ServerID) > maxSmallBytes {
		return nil, kv.Errorf(kv.CodeTooLarge, "label exceeds its limits: state %d bytes (at most %d), configuration %d",
			len(l.State), maxStateBytes, len(l.Configuration))
	}
	var nanos int64
	if !l.Time.IsZero() {
		nanos = l.Time.UnixNano()
	}
	le := binary.LittleEndian
	for _, n := range [...]uint64{l.Index, l.Term, l.ConfigurationIndex, l.Revision, l.CompactRevision, uint64(nanos)} {
		dst = le.AppendUint64(dst, n)
	}
	for _, b := range [...][]byte{l.Configuration, []byte(l.ClusterID), []byte(l.ServerID), l.State} {
		dst = le.AppendUint32(dst, uint32(len(b)))
		dst = append(dst, b...)
	}
	return dst, nil
}

var errShortLabel = errors.New("label ends early")

// decodeLabel reads what appendLabel wrote and nothing more. The result shares no
// memory with b.
func decodeLabel(b []byte) (Label, error) {
	var fixed [6]uint64
	if len(b) < 8*len(fixed) {
		return Label{}, errShortLabel
	}
	le := binary.LittleEndian
	for i := range fixed {
		fixed[i] = le.Uint64(b)
		b = b[8:]
	}
	limits := [...]uint32{maxSmallBytes, maxSmallBytes, maxSmallBytes, maxStateBytes}
	var fields [len(limits)][]byte
	for i, limit := range limits {
		if len(b) < 4 {
			return Label{}, errShortLabel
		}
		n := le.Uint32(b)
		b = b[4:]
		if n > limit {
			return Label{}, fmt.Errorf("label field of %d bytes exceeds %d", n, limit)
		}
		if uint64(n) > uint64(len(b)) {
			return Label{}, errShortLabel
		}
		if n > 0 {
			fields[i] = append([]byte(nil), b[:n]...)
		}
		b = b[n:]
	}
	if len(b) != 0 {
		return Label{}, fmt.Errorf("%d bytes after the label", len(b))
	}
	l := Label{
		Index: fixed[0], Term: fixed[1], ConfigurationIndex: fixed[2], Revision: fixed[3], CompactRevision: fixed[4],
		Configuration: fields[0], ClusterID: string(fields[1]), ServerID: string(fields[2]), State: fields[3],
	}
	if nanos := int64(fixed[5]); nanos != 0 {
		l.Time = time.Unix(0, nanos).UTC()
	}
	return l, nil
}

// encodeLabelFile returns the content of a label file: magic, version, length,
// label, checksum of all of it.
func encodeLabelFile(l Label) ([]byte, error) {
	b := append(make([]byte, 0, 512), labelMagic...)
	b = binary.LittleEndian.AppendUint32(b, labelVersion)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b, err := appendLabel(b, l)
	if err != nil {
		return nil, err
	}
	binary.LittleEndian.PutUint32(b[12:], uint32(len(b)-labelPreludeBytes))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)), nil
}

func decodeLabelFile(b []byte) (Label, error) {
	le := binary.LittleEndian
	if len(b) < labelPreludeBytes+4 || string(b[:8]) != labelMagic {
		return Label{}, errors.New("not a label file")
	}
	body := b[:len(b)-4]
	if le.Uint32(b[len(b)-4:]) != crc32.Checksum(body, castagnoli) {
		return Label{}, errors.New("label checksum mismatch")
	}
	if v := le.Uint32(b[8:]); v != labelVersion {
		return Label{}, fmt.Errorf("label format %d: %w", v, kv.ErrUnknownVersion)
	}
	if uint64(le.Uint32(b[12:])) != uint64(len(body)-labelPreludeBytes) {
		return Label{}, errors.New("label length mismatch")
	}
	return decodeLabel(body[labelPreludeBytes:])
}

// writeLabel makes l the label of the generation in dir, durably.
func writeLabel(dir string, l Label) error {
	b, err := encodeLabelFile(l)
	if err != nil {
		return err
	}
	if err := replaceFile(filepath.Join(dir, labelName), b); err != nil {
		return fmt.Errorf("write label: %w", err)
	}
	return nil
}

// ReadLabel reads the label of the generation in dir; found is false if none was
// ever written. A label that doesn't check out is a corruption error.
func ReadLabel(dir string) (l Label, found bool, err error) {
	path := filepath.Join(dir, labelName)
	b, err := readBounded(path, labelPreludeBytes+maxLabelBytes+4)
	if errors.Is(err, os.ErrNotExist) {
		return Label{}, false, nil
	}
	if err != nil {
		return Label{}, false, fmt.Errorf("read label: %w", err)
	}
	if l, err = decodeLabelFile(b); errors.Is(err, kv.ErrUnknownVersion) {
		return Label{}, false, fmt.Errorf("%s: %w", path, err)
	} else if err != nil {
		e := corrupt("%s is damaged; wipe the data folder so that the server rejoins as a new one", path)
		e.Err = err
		return Label{}, false, e
	}
	return l, true, nil
}
