package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/settkv/sett/kv"
)

// The layout of the data store. Every key begins with a byte of ours, so that no
// user key can meet Badger's own or our records (Invariant 15):
//
//	'd' key              header and value; a big value is in pieces
//	'e' revision part    change index; part finalPart carries the revision's state
//	'p' key piece        a piece of a big value
//	'x' expiry key       expiry index; empty value
//	'i' hash             remembered outcome of a write with an idempotency key
//	'j' hash piece       a piece of a big outcome
//	'o' sequence         which outcomes were remembered together, oldest first
//
// Revisions and expiry times are 8 bytes, parts and pieces 4, big-endian. The
// timestamp of each record is the revision that wrote it. A piece's key cannot be
// mistaken for another key's: the suffix has a fixed length.
const (
	prefixData   = 'd'
	prefixEvent  = 'e'
	prefixPiece  = 'p'
	prefixExpiry = 'x'

	prefixOutcome      = 'i'
	prefixOutcomePiece = 'j'
	prefixOutcomeGroup = 'o'

	finalPart = 0xFFFFFFFF

	// pieceBytes is the size of a piece. A value up to it stays beside its header.
	// Invariant B3: no value that the engine sees reaches its value threshold.
	pieceBytes = 64 << 10

	maxKeyBytes         = 32 << 10
	maxContentTypeBytes = 1 << 10
	maxExpiresAt        = 253_402_300_799_999 // milliseconds; the end of the year 9999
	maxTTL              = 100 * 366 * 24 * time.Hour

	recordVersion = 1
	eventVersion  = 1

	// inlineChangesBytes is how much of the change list stands in the final part.
	inlineChangesBytes = 32 << 10
	changePartBytes    = 64 << 10
)

// damaged is the error of what is on disk and can't be read, unless a newer version
// wrote it.
func damaged(cause error, format string, args ...any) error {
	if errors.Is(cause, kv.ErrUnknownVersion) {
		return fmt.Errorf(format+": %w", append(args, cause)...)
	}
	e := kv.Errorf(kv.CodeCorruption, format, args...)
	e.Err = cause
	return e
}

func dataKey(key string) []byte {
	b := make([]byte, 0, 1+len(key))
	return append(append(b, prefixData), key...)
}

// dataRange returns the bounds of a range of keys in the data store.
func dataRange(r kv.Range) (start, end []byte) {
	if r.End == "" {
		return dataKey(r.Start), []byte{prefixData + 1}
	}
	return dataKey(r.Start), dataKey(r.End)
}

func pieceKey(key string, i uint32) []byte {
	b := make([]byte, 0, 5+len(key))
	b = append(append(b, prefixPiece), key...)
	return binary.BigEndian.AppendUint32(b, i)
}

func eventKey(rev kv.Revision, part uint32) []byte {
	b := make([]byte, 0, 13)
	b = binary.BigEndian.AppendUint64(append(b, prefixEvent), uint64(rev))
	return binary.BigEndian.AppendUint32(b, part)
}

func decodeEventKey(k []byte) (rev kv.Revision, part uint32, ok bool) {
	if len(k) != 13 || k[0] != prefixEvent {
		return 0, 0, false
	}
	return kv.Revision(binary.BigEndian.Uint64(k[1:])), binary.BigEndian.Uint32(k[9:]), true
}

func expiryKey(ms uint64, key string) []byte {
	b := make([]byte, 0, 9+len(key))
	b = binary.BigEndian.AppendUint64(append(b, prefixExpiry), ms)
	return append(b, key...)
}

func decodeExpiryKey(k []byte) (ms uint64, key string, ok bool) {
	if len(k) < 10 || k[0] != prefixExpiry {
		return 0, "", false
	}
	return binary.BigEndian.Uint64(k[1:]), string(k[9:]), true
}

// record is a key's state at a revision: the header, and the value if it is loaded.
type record struct {
	create, mod kv.Revision
	version     uint64
	contentType string
	expires     uint64 // cluster milliseconds, 0: never
	valueHash   [sha256.Size]byte
	size        uint64 // of the value, in bytes
	value       []byte // complete if loaded
	loaded      bool
}

const (
	flagExpires = 1 << iota
	flagPieces
)

func (r *record) pieces() uint32 { return piecesOf(r.size) }

// piecesOf says in how many pieces a value of the given size is stored; 0 means
// beside the header.
func piecesOf(size uint64) uint32 {
	if size <= pieceBytes {
		return 0
	}
	return uint32((size + pieceBytes - 1) / pieceBytes)
}

func encodeRecord(r *record) []byte {
	inline := r.pieces() == 0
	size := 64 + len(r.contentType) + len(r.valueHash)
	if inline {
		size += len(r.value)
	}
	e := encoder{b: make([]byte, 0, size)}
	e.byte(recordVersion)
	var flags byte
	if r.expires != 0 {
		flags |= flagExpires
	}
	if !inline {
		flags |= flagPieces
	}
	e.byte(flags)
	e.uvarint(uint64(r.create))
	e.uvarint(r.version)
	if r.expires != 0 {
		e.uvarint(r.expires)
	}
	e.string(r.contentType)
	e.b = append(e.b, r.valueHash[:]...)
	e.uvarint(r.size)
	if inline {
		e.b = append(e.b, r.value...)
	}
	return e.b
}

// decodeRecord reads a header. The value, if it is beside the header, is a slice of
// b: the caller copies it if b does not live long enough.
func decodeRecord(b []byte, mod uint64) (*record, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != recordVersion {
		return nil, fmt.Errorf("record format version %d: %w", v, kv.ErrUnknownVersion)
	}
	flags := d.byte()
	r := &record{create: kv.Revision(d.uvarint()), mod: kv.Revision(mod), version: d.uvarint()}
	if flags&flagExpires != 0 {
		r.expires = d.uvarint()
	}
	r.contentType = d.string()
	if len(d.b) < len(r.valueHash) {
		d.fail()
	}
	copy(r.valueHash[:], d.b)
	if d.err == nil {
		d.b = d.b[len(r.valueHash):]
	}
	r.size = d.uvarint()
	if d.err != nil {
		return nil, fmt.Errorf("decode record: %w", d.err)
	}
	if flags&flagPieces == 0 {
		// Invariant B3: a missing value never reads as empty.
		if uint64(len(d.b)) != r.size {
			return nil, fmt.Errorf("decode record: value has %d of %d bytes", len(d.b), r.size)
		}
		r.value, r.loaded = d.b, true
	} else if len(d.b) != 0 || r.pieces() == 0 {
		return nil, fmt.Errorf("decode record: %w", errMalformed)
	}
	return r, nil
}

func (r *record) item(key string) *kv.Item {
	it := &kv.Item{
		Key: key, Value: r.value, CreateRevision: r.create, ModRevision: r.mod, Version: r.version,
		ContentType: r.contentType, ExpiresAt: timeOf(r.expires),
	}
	if it.Value == nil {
		it.Value = []byte{}
	}
	return it
}

// The kinds of change in the change index. The numbers are part of the format.
const (
	changePut    = 1
	changeDelete = 2
	changeExpire = 3
)

// change is one line of the change index.
type change struct {
	kind byte
	key  string
}

// event is the state that goes with a revision.
type event struct {
	index, term uint64      // of the Raft entry that made the revision
	sub         uint64      // commands of that entry that are done, this one included
	stamp       uint64      // cluster clock, milliseconds
	compact     kv.Revision // compaction revision at that time
	keys        uint64      // live keys
	written     uint64      // bytes of keys and values of all changes up to here
	once        onceTable   // what the outcomes that are remembered come to
	changes     uint64      // in this revision
	parts       uint32      // of the change list outside the final part
	inline      []change    // when parts is 0
	// checkpoint, if not nil, is the state of the digest at this revision.
	checkpoint *digest
}

func appendChange(e *encoder, c change) {
	e.byte(c.kind)
	e.string(c.key)
}

func decodeChanges(d *decoder, n int) []change {
	out := make([]change, 0, n)
	for range n {
		out = append(out, change{kind: d.byte(), key: d.string()})
	}
	return out
}

// encodeEvent returns the parts of the change list that do not fit the final record,
// and the final record.
func encodeEvent(ev *event, changes []change) (parts [][]byte, final []byte) {
	size := 0
	for _, c := range changes {
		size += len(c.key) + 6
	}
	if size > inlineChangesBytes {
		var e encoder
		n := 0
		var body encoder
		cut := func() {
			if n == 0 {
				return
			}
			e = encoder{}
			e.uvarint(uint64(n))
			e.b = append(e.b, body.b...)
			parts = append(parts, e.b)
			n, body = 0, encoder{}
		}
		for _, c := range changes {
			if len(body.b)+len(c.key) > changePartBytes {
				cut()
			}
			appendChange(&body, c)
			n++
		}
		cut()
	}
	ev.parts = uint32(len(parts))
	ev.changes = uint64(len(changes))

	e := encoder{b: make([]byte, 0, 64)}
	e.byte(eventVersion)
	e.bool(ev.checkpoint != nil)
	e.uvarint(ev.index)
	e.uvarint(ev.term)
	e.uvarint(ev.sub)
	e.uvarint(ev.stamp)
	e.uvarint(uint64(ev.compact))
	e.uvarint(ev.keys)
	e.uvarint(ev.written)
	e.onceTable(ev.once)
	e.uvarint(ev.changes)
	e.uvarint(uint64(ev.parts))
	if ev.parts == 0 {
		for _, c := range changes {
			appendChange(&e, c)
		}
	}
	if ev.checkpoint != nil {
		e.b = ev.checkpoint.append(e.b)
	}
	return parts, e.b
}

func decodeEvent(b []byte) (*event, error) {
	d := decoder{b: b}
	if v := d.byte(); d.err == nil && v != eventVersion {
		return nil, fmt.Errorf("change record format version %d: %w", v, kv.ErrUnknownVersion)
	}
	checkpoint := d.bool()
	ev := &event{
		index: d.uvarint(), term: d.uvarint(), sub: d.uvarint(), stamp: d.uvarint(),
		compact: kv.Revision(d.uvarint()), keys: d.uvarint(), written: d.uvarint(), once: d.onceTable(), changes: d.uvarint(), parts: uint32(d.uvarint()),
	}
	if ev.parts == 0 {
		if ev.changes > uint64(len(d.b)) {
			d.fail()
		}
		if d.err == nil {
			ev.inline = decodeChanges(&d, int(ev.changes))
		}
	}
	if checkpoint && d.err == nil {
		if ev.checkpoint = new(digest); !ev.checkpoint.decode(d.b) {
			d.fail()
		} else {
			d.b = d.b[digestBytes:]
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("decode change record: %w", err)
	}
	return ev, nil
}
