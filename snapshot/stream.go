package snapshot

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// The stream format, version 1. All numbers are little-endian.
//
//	magic "SETTSNAP"  version u32  length u32        prelude
//	size u64  base revision u64  label               header, length bytes
//	crc32c u32                                       of all before it
//	[length u64  KVList]…                            Badger backup frames
//	end marker u64                                   no frame is that long
//	keys u64  records u64  body bytes u64  sha256 [32]  complete u8  crc32c u32
//
// The SHA-256 covers everything before the end marker; the last checksum covers the
// end record.
const (
	streamMagic   = "SETTSNAP"
	streamVersion = 1
	// streamPreludeBytes is magic, version and header length.
	streamPreludeBytes = 8 + 4 + 4
	// headerFixedBytes is what comes before the label in the header.
	headerFixedBytes = 8 + 8
	maxHeaderBytes   = headerFixedBytes + maxLabelBytes
	// frameTargetBytes is the length at which a frame is sent off.
	frameTargetBytes = 1 << 20
	endMarker        = ^uint64(0)
	endRecordBytes   = 8 + 8 + 8 + sha256.Size + 1 + 4
	endComplete      = 1
)

// Header is what a stream says of itself before its content.
type Header struct {
	// Size is the length of the whole stream in bytes; 0 if it wasn't counted before
	// it was written.
	Size uint64
	// BaseRevision is 0 for a full stream; else it holds only what came after it.
	BaseRevision uint64
	Label        Label
}

// Summary is what is known of a stream that was written or read to its end.
type Summary struct {
	FormatVersion uint32
	Header        Header
	// Keys counts the distinct keys of the engine, deleted ones included; Records
	// counts their versions.
	Keys    uint64
	Records uint64
	// BodyBytes is the length of all frames; Bytes is that of the whole stream.
	BodyBytes uint64
	Bytes     uint64
	// SHA256 covers the stream up to its end marker.
	SHA256 [sha256.Size]byte
	// Complete says that the end record is there and everything agrees with it.
	Complete bool
}

// exporter is the part of engine.Reader that a stream is made from.
type exporter interface {
	Export(floor uint64, fn func(engine.Record) error) error
}

// tally counts records and holds their order to that of an export: keys ascending,
// versions of a key descending, none newer than the label.
type tally struct {
	revision      uint64
	keys, records uint64
	key           []byte
	version       uint64
}

func (t *tally) add(r engine.Record) error {
	if r.Version == 0 || r.Version > t.revision {
		return corrupt("record of revision %d in a stream of revision %d", r.Version, t.revision)
	}
	order := 1
	if t.records > 0 {
		order = bytes.Compare(r.Key, t.key)
	}
	switch {
	case order < 0 || order == 0 && r.Version >= t.version:
		return corrupt("record of revision %d is out of order", r.Version)
	case order > 0:
		t.keys++
		t.key = append(t.key[:0], r.Key...)
	}
	t.version = r.Version
	t.records++
	return nil
}

// streamWriter writes through to w; hash may be nil to count only.
type streamWriter struct {
	w    io.Writer
	hash hash.Hash
	n    uint64
}

func (s *streamWriter) write(b []byte) error {
	if s.hash != nil {
		s.hash.Write(b)
	}
	n, err := s.w.Write(b)
	s.n += uint64(n)
	if mutantWriterFailureIgnored {
		return nil
	}
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return err
}

// WriteStream writes everything that r can see, with its history above
// l.CompactRevision, as one stream labelled l, which must be of exactly r's
// revision. It uses constant memory. It returns at w's first error; nothing is left
// running.
func WriteStream(w io.Writer, l Label, r *engine.Reader) (Summary, error) {
	if l.Revision != r.TS() {
		return Summary{}, kv.Errorf(kv.CodeInternal, "label of revision %d on a reader of revision %d", l.Revision, r.TS())
	}
	return writeStream(w, Header{Label: l}, r)
}

func writeStream(w io.Writer, h Header, src exporter) (Summary, error) {
	return (&streamWriter{w: w, hash: sha256.New()}).stream(h, src)
}

// measureStream returns the exact length of the stream that writeStream would write.
func measureStream(h Header, src exporter) (uint64, error) {
	sum, err := (&streamWriter{w: io.Discard}).stream(h, src)
	return sum.Bytes, err
}

func (s *streamWriter) stream(h Header, src exporter) (Summary, error) {
	head, err := appendHeader(nil, h)
	if err != nil {
		return Summary{}, err
	}
	if err := s.write(head); err != nil {
		return Summary{}, fmt.Errorf("write stream: %w", err)
	}
	bodyStart := s.n
	t := tally{revision: h.Label.Revision}
	frame := make([]byte, engine.FramePrefixBytes, frameTargetBytes+engine.FramePrefixBytes)
	flush := func() error {
		if len(frame) == engine.FramePrefixBytes {
			return nil
		}
		binary.LittleEndian.PutUint64(frame, uint64(len(frame)-engine.FramePrefixBytes))
		err := s.write(frame)
		frame = frame[:engine.FramePrefixBytes]
		return err
	}
	err = src.Export(h.Label.CompactRevision, func(r engine.Record) error {
		if err := t.add(r); err != nil {
			return err
		}
		n := engine.RecordBytes(r)
		if n > engine.MaxFrameBytes {
			return corrupt("record of %d bytes does not fit a frame", n)
		}
		if len(frame)+n > frameTargetBytes {
			if err := flush(); err != nil {
				return err
			}
		}
		frame = engine.AppendRecord(frame, r)
		return nil
	})
	if err == nil {
		err = flush()
	}
	if err != nil {
		return Summary{}, fmt.Errorf("write stream: %w", err)
	}
	sum := Summary{
		FormatVersion: streamVersion, Header: h, Keys: t.keys, Records: t.records,
		BodyBytes: s.n - bodyStart, Complete: true,
	}
	if s.hash != nil {
		s.hash.Sum(sum.SHA256[:0])
	}
	if err := s.write(appendEnd(nil, sum)); err != nil {
		return Summary{}, fmt.Errorf("write stream: %w", err)
	}
	sum.Bytes = s.n
	return sum, nil
}

func appendHeader(dst []byte, h Header) ([]byte, error) {
	start := len(dst)
	le := binary.LittleEndian
	dst = append(dst, streamMagic...)
	dst = le.AppendUint32(dst, streamVersion)
	dst = le.AppendUint32(dst, 0)
	dst = le.AppendUint64(dst, h.Size)
	dst = le.AppendUint64(dst, h.BaseRevision)
	dst, err := appendLabel(dst, h.Label)
	if err != nil {
		return nil, err
	}
	le.PutUint32(dst[start+12:], uint32(len(dst)-start-streamPreludeBytes))
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli)), nil
}

// appendEnd appends the end marker and the end record.
func appendEnd(dst []byte, s Summary) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, endMarker)
	start := len(dst)
	dst = le.AppendUint64(dst, s.Keys)
	dst = le.AppendUint64(dst, s.Records)
	dst = le.AppendUint64(dst, s.BodyBytes)
	dst = append(dst, s.SHA256[:]...)
	dst = append(dst, endComplete)
	return le.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

// decoder reads one stream: header, then next until io.EOF, then finish. It uses
// memory for one frame. Nothing it returned may be trusted before finish succeeded.
type decoder struct {
	r       *bufio.Reader
	hash    hash.Hash
	sum     Summary
	tally   tally
	frame   []byte
	records []engine.Record
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{r: bufio.NewReaderSize(r, 64<<10), hash: sha256.New()}
}

// full reads exactly len(b) bytes.
func (d *decoder) full(b []byte, what string) error {
	if _, err := io.ReadFull(d.r, b); err != nil {
		return d.readError(err, what)
	}
	d.sum.Bytes += uint64(len(b))
	return nil
}

// readError keeps the reader's own failures, which say nothing about the stream,
// apart from a stream that ends too soon.
func (d *decoder) readError(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("stream is cut short in its %s, after %d bytes", what, d.sum.Bytes)
	}
	return fmt.Errorf("read stream's %s: %w", what, err)
}

func (d *decoder) header() (Header, error) {
	var prelude [streamPreludeBytes]byte
	if err := d.full(prelude[:], "prelude"); err != nil {
		return Header{}, err
	}
	le := binary.LittleEndian
	if string(prelude[:8]) != streamMagic {
		return Header{}, corrupt("not a sett snapshot stream")
	}
	if v := le.Uint32(prelude[8:]); v != streamVersion {
		return Header{}, kv.Errorf(kv.CodeInvalidArgument, "snapshot format %d is not supported; this version of sett reads format %d", v, streamVersion)
	}
	n := le.Uint32(prelude[12:])
	if n < headerFixedBytes || n > maxHeaderBytes {
		return Header{}, corrupt("stream header of %d bytes is out of bounds", n)
	}
	// The buffer grows with what arrives, so a false length costs nothing.
	var buf bytes.Buffer
	buf.Write(prelude[:])
	if _, err := io.CopyN(&buf, d.r, int64(n)+4); err != nil {
		return Header{}, d.readError(err, "header")
	}
	d.sum.Bytes += uint64(n) + 4
	b := buf.Bytes()
	d.hash.Write(b)
	body := b[:len(b)-4]
	if le.Uint32(b[len(b)-4:]) != crc32.Checksum(body, castagnoli) {
		return Header{}, corrupt("stream header checksum mismatch")
	}
	body = body[streamPreludeBytes:]
	h := Header{Size: le.Uint64(body), BaseRevision: le.Uint64(body[8:])}
	var err error
	if h.Label, err = decodeLabel(body[headerFixedBytes:]); err != nil {
		e := corrupt("stream header is damaged")
		e.Err = err
		return Header{}, e
	}
	d.sum.FormatVersion = streamVersion
	d.sum.Header = h
	d.tally.revision = h.Label.Revision
	return h, nil
}

// next returns the records of the next frame, valid until the next call, or io.EOF
// at the end marker.
func (d *decoder) next() ([]engine.Record, error) {
	var prefix [engine.FramePrefixBytes]byte
	if err := d.full(prefix[:], "body"); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n == endMarker {
		return nil, io.EOF
	}
	if n == 0 || n > engine.MaxFrameBytes {
		return nil, corrupt("frame of %d bytes is out of bounds", n)
	}
	if uint64(cap(d.frame)) < n {
		d.frame = make([]byte, n)
	}
	d.frame = d.frame[:n]
	if err := d.full(d.frame, "body"); err != nil {
		return nil, err
	}
	d.hash.Write(prefix[:])
	d.hash.Write(d.frame)
	d.sum.BodyBytes += uint64(len(prefix)) + n
	var err error
	if d.records, err = engine.DecodeFrame(d.records[:0], d.frame); err != nil {
		e := corrupt("stream has a damaged frame")
		e.Err = err
		return nil, e
	}
	for _, r := range d.records {
		if err := d.tally.add(r); err != nil {
			return nil, err
		}
	}
	return d.records, nil
}

// finish checks the end record against everything read.
func (d *decoder) finish() (Summary, error) {
	var b [endRecordBytes]byte
	if err := d.full(b[:], "end record"); err != nil {
		return Summary{}, err
	}
	le := binary.LittleEndian
	if le.Uint32(b[endRecordBytes-4:]) != crc32.Checksum(b[:endRecordBytes-4], castagnoli) {
		return Summary{}, corrupt("end record checksum mismatch")
	}
	sum := d.sum
	sum.Keys, sum.Records = d.tally.keys, d.tally.records
	d.hash.Sum(sum.SHA256[:0])
	switch {
	case b[24+sha256.Size] != endComplete:
		return Summary{}, corrupt("stream is marked as incomplete")
	case le.Uint64(b[0:]) != sum.Keys || le.Uint64(b[8:]) != sum.Records || le.Uint64(b[16:]) != sum.BodyBytes:
		return Summary{}, corrupt("stream's counts differ from its content")
	case !bytes.Equal(b[24:24+sha256.Size], sum.SHA256[:]):
		return Summary{}, corrupt("stream's SHA-256 differs from its content")
	case sum.Header.Size != 0 && sum.Header.Size != sum.Bytes:
		return Summary{}, corrupt("stream of %d bytes says that it has %d", sum.Bytes, sum.Header.Size)
	}
	sum.Complete = true
	return sum, nil
}

// end checks that nothing follows.
func (d *decoder) end() error {
	switch _, err := d.r.ReadByte(); {
	case err == nil:
		return corrupt("stream has bytes after its end")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read stream's end: %w", err)
	}
	return nil
}

// ReadStream reads one stream to its end and checks all of it. header, if not nil,
// gets what the stream says of itself; records, if not nil, gets the content in
// batches that are valid until it returns. An error of either ends the reading.
// What they were given may be used only after ReadStream returned without an error:
// until then it may be damaged or cut short. Bytes after the end are an error.
// Memory is bounded whatever the stream says.
func ReadStream(r io.Reader, header func(Header) error, records func([]engine.Record) error) (Summary, error) {
	d := newDecoder(r)
	h, err := d.header()
	if err != nil {
		return Summary{}, err
	}
	if header != nil {
		if err := header(h); err != nil {
			return Summary{}, err
		}
	}
	for {
		batch, err := d.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Summary{}, err
		}
		if records != nil {
			if err := records(batch); err != nil {
				return Summary{}, err
			}
		}
	}
	sum, err := d.finish()
	if err != nil {
		return Summary{}, err
	}
	if err := d.end(); err != nil {
		return Summary{}, err
	}
	return sum, nil
}

// Verify reads a stream to its end and checks everything about it that can be
// checked without restoring it.
func Verify(r io.Reader) (Summary, error) {
	return ReadStream(r, nil, nil)
}

// Inspect reads only what a stream says of itself, which is protected by its own
// checksum. It tells nothing about the content: see Verify.
func Inspect(r io.Reader) (Header, error) {
	return newDecoder(r).header()
}
