package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The frame format is that of a Badger backup: a little-endian uint64 length and a
// protocol-buffer KVList of that many bytes, so that plain Badger's DB.Load reads a
// sequence of frames. It is written by hand here: the generated decoder spends a
// large struct on each two bytes of hostile input, and copies every key and value.
const (
	// FramePrefixBytes is the length of a frame's length field.
	FramePrefixBytes = 8
	// MaxFrameBytes bounds the list in one frame, for writers and readers. It holds
	// any single record that the engine can store.
	MaxFrameBytes = 4 << 20

	// The field tags of badger's pb.KVList and pb.KV that are used.
	tagListKV     = 1<<3 | 2
	tagKVKey      = 1<<3 | 2
	tagKVValue    = 2<<3 | 2
	tagKVVersion  = 4 << 3
	tagKVMeta     = 6<<3 | 2
	metaTombstone = 1 // badger's bitDelete
)

// ErrFrame reports bytes that are not a frame as AppendRecord writes it.
var ErrFrame = errors.New("malformed frame")

func uvarintBytes(n uint64) int {
	size := 1
	for ; n >= 0x80; n >>= 7 {
		size++
	}
	return size
}

func kvBytes(r Record) int {
	size := 1 + uvarintBytes(uint64(len(r.Key))) + len(r.Key) + 1 + uvarintBytes(r.Version)
	if len(r.Value) > 0 {
		size += 1 + uvarintBytes(uint64(len(r.Value))) + len(r.Value)
	}
	if r.Delete {
		size += 3
	}
	return size
}

// RecordBytes returns the number of bytes that AppendRecord adds for r.
func RecordBytes(r Record) int {
	size := kvBytes(r)
	return 1 + uvarintBytes(uint64(size)) + size
}

// AppendRecord appends r as an element of a frame's list. The result keeps no
// reference to r.
func AppendRecord(dst []byte, r Record) []byte {
	dst = append(dst, tagListKV)
	dst = binary.AppendUvarint(dst, uint64(kvBytes(r)))
	dst = append(dst, tagKVKey)
	dst = binary.AppendUvarint(dst, uint64(len(r.Key)))
	dst = append(dst, r.Key...)
	if len(r.Value) > 0 {
		dst = append(dst, tagKVValue)
		dst = binary.AppendUvarint(dst, uint64(len(r.Value)))
		dst = append(dst, r.Value...)
	}
	dst = append(dst, tagKVVersion)
	dst = binary.AppendUvarint(dst, r.Version)
	if r.Delete {
		dst = append(dst, tagKVMeta, 1, metaTombstone)
	}
	return dst
}

// EncodeFrame appends one whole frame, length field included, that holds records in
// their order. It fails when they take more than MaxFrameBytes.
func EncodeFrame(dst []byte, records []Record) ([]byte, error) {
	size := 0
	for _, r := range records {
		size += RecordBytes(r)
	}
	if size > MaxFrameBytes {
		return dst, fmt.Errorf("%w: %d bytes of records exceed %d", ErrFrame, size, MaxFrameBytes)
	}
	dst = binary.LittleEndian.AppendUint64(dst, uint64(size))
	for _, r := range records {
		dst = AppendRecord(dst, r)
	}
	return dst, nil
}

// DecodeFrame appends the records of a frame's list (without the length field) to
// dst. Keys and values are slices of list: they are valid as long as it is. Only
// what AppendRecord writes is accepted, so that equal records are equal bytes.
func DecodeFrame(dst []Record, list []byte) ([]Record, error) {
	if len(list) > MaxFrameBytes {
		return dst, fmt.Errorf("%w: %d bytes exceed %d", ErrFrame, len(list), MaxFrameBytes)
	}
	for len(list) > 0 {
		body, rest, ok := takeField(list, tagListKV)
		if !ok {
			return dst, fmt.Errorf("%w: bad list element", ErrFrame)
		}
		r, err := decodeKV(body)
		if err != nil {
			return dst, err
		}
		dst = append(dst, r)
		list = rest
	}
	return dst, nil
}

func decodeKV(b []byte) (Record, error) {
	var r Record
	var ok bool
	if r.Key, b, ok = takeField(b, tagKVKey); !ok || len(r.Key) == 0 {
		return Record{}, fmt.Errorf("%w: record without a key", ErrFrame)
	}
	if len(b) > 0 && b[0] == tagKVValue {
		if r.Value, b, ok = takeField(b, tagKVValue); !ok || len(r.Value) == 0 {
			return Record{}, fmt.Errorf("%w: bad value", ErrFrame)
		}
	}
	if len(b) == 0 || b[0] != tagKVVersion {
		return Record{}, fmt.Errorf("%w: record without a version", ErrFrame)
	}
	if r.Version, b, ok = takeUvarint(b[1:]); !ok {
		return Record{}, fmt.Errorf("%w: bad version", ErrFrame)
	}
	if len(b) > 0 {
		if len(b) != 3 || b[0] != tagKVMeta || b[1] != 1 || b[2] != metaTombstone {
			return Record{}, fmt.Errorf("%w: unknown field", ErrFrame)
		}
		r.Delete = true
	}
	return r, nil
}

// takeField splits a length-delimited field with the given tag off b.
func takeField(b []byte, tag byte) (field, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != tag {
		return nil, b, false
	}
	n, rest, ok := takeUvarint(b[1:])
	if !ok || n > uint64(len(rest)) {
		return nil, b, false
	}
	return rest[:n:n], rest[n:], true
}

// takeUvarint splits a varint in its shortest form off b.
func takeUvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || n != uvarintBytes(v) {
		return 0, b, false
	}
	return v, b[n:], true
}
