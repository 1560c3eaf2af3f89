package snapshot

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

// A stream holds back the discarding of history, which costs disk space, so it gets
// no more time than a follower at minStreamRate needs; then the engine ends it.
const (
	streamGrace   = 30 * time.Minute
	minStreamRate = 256 << 10 // bytes per second
)

var errStreamClosed = errors.New("snapshot stream was closed")

// liveStream is the current database's content at one revision, read as it is sent.
// One goroutine produces it; it ends when all is read, on the first error, when the
// consumer closes the stream or stalls, and when the store switches or closes.
type liveStream struct {
	store  *Store
	header Header
	pr     *io.PipeReader
	pw     *io.PipeWriter
	// stall ends the stream when the consumer doesn't come back for more.
	stall *time.Timer
	// released is closed once the engine reader is.
	released chan struct{}
	// stopped is closed when the stream is ended before its time.
	stopped chan struct{}

	// older is for mutantTornSnapshot only.
	older *engine.Reader

	mu sync.Mutex
	// reader is nil until it is captured.
	reader *engine.Reader
	// cause is why stopped is closed.
	cause error
	// readAll is when the consumer saw the end; zero before.
	readAll time.Time
}

// openLive captures the current content and returns its stream, whose header has
// the exact size.
func (s *Store) openLive(name string) (*liveStream, error) {
	pr, pw := io.Pipe()
	st := &liveStream{store: s, pr: pr, pw: pw, released: make(chan struct{}), stopped: make(chan struct{})}
	s.mu.Lock()
	err := s.usableLocked()
	switch {
	case err != nil:
	case s.current.name != name:
		err = kv.Errorf(kv.CodeNotFound, "no snapshot %q", name)
	case s.source == nil:
		err = kv.Errorf(kv.CodeNotReady, "the state machine is not open yet")
	}
	if err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	// Registered before the capture, so that no local snapshot slips in between and
	// has the log cut above what this stream will contain.
	s.streams[st] = struct{}{}
	source, floor := s.source, s.current.label.Index
	s.mu.Unlock()

	if err := st.capture(source, floor); err != nil {
		st.stop(err)
		s.mu.Lock()
		delete(s.streams, st)
		s.mu.Unlock()
		return nil, fmt.Errorf("open snapshot: %w", err)
	}
	st.stall = time.AfterFunc(s.cfg.StallTimeout, func() { st.stop(ErrStalled) })
	go st.run()
	return st, nil
}

// capture takes label and reader and measures the stream. On an error the reader is
// closed.
func (st *liveStream) capture(source Source, floor uint64) (err error) {
	// Invariant 16: one capture gives the label and the one read timestamp of all the
	// content; label and content never differ.
	label, reader, err := source.Capture()
	if err != nil {
		return err
	}
	if mutantTornSnapshot {
		st.older = reader
		if label, reader, err = source.Capture(); err != nil {
			return err
		}
	}
	st.mu.Lock()
	st.reader = reader
	st.mu.Unlock()
	defer func() {
		if err != nil {
			st.release()
		}
	}()
	switch {
	case label.Revision != reader.TS():
		return kv.Errorf(kv.CodeInternal, "label of revision %d on a reader of revision %d", label.Revision, reader.TS())
	case label.Index < floor:
		return kv.Errorf(kv.CodeInternal, "captured index %d is below snapshot %d", label.Index, floor)
	}
	st.header = Header{Label: label}
	began := time.Now()
	// Measuring is bounded by the speed of this server's own disk.
	reader.Extend(24 * time.Hour)
	size, err := measureStream(st.header, st)
	if err != nil {
		return err
	}
	st.header.Size = size
	reader.Extend(time.Since(began) + streamGrace + time.Duration(size/minStreamRate)*time.Second)
	return nil
}

// Export makes the stream stop between two records once it has been ended.
func (st *liveStream) Export(floor uint64, fn func(engine.Record) error) error {
	var src exporter = st.content()
	if mutantTornSnapshot {
		src = tornExporter{older: st.older, newer: src}
	}
	return src.Export(floor, func(r engine.Record) error {
		select {
		case <-st.stopped:
			return st.stopCause()
		default:
			return fn(r)
		}
	})
}

func (st *liveStream) run() {
	sum, err := writeStream(st.pw, st.header, st)
	if err == nil && sum.Bytes != st.header.Size {
		err = kv.Errorf(kv.CodeInternal, "snapshot stream has %d bytes, %d were counted", sum.Bytes, st.header.Size)
	}
	if err != nil {
		st.store.log.Debug("snapshot stream ended early", "error", err)
	}
	st.release()
	_ = st.pw.CloseWithError(err)
}

func (st *liveStream) content() *engine.Reader {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.reader
}

func (st *liveStream) captured() bool { return st.content() != nil }

func (st *liveStream) release() {
	st.reader.Close()
	if mutantTornSnapshot {
		st.older.Close()
	}
	close(st.released)
}

// stop ends the stream with cause, unless it was ended before.
func (st *liveStream) stop(cause error) {
	st.mu.Lock()
	first := st.cause == nil
	if first {
		st.cause = cause
		close(st.stopped)
	}
	st.mu.Unlock()
	if first {
		_ = st.pw.CloseWithError(cause)
	}
}

func (st *liveStream) stopCause() error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.cause
}

// Read returns the stream's bytes, and io.EOF only after its end record.
func (st *liveStream) Read(p []byte) (int, error) {
	st.stall.Stop()
	n, err := st.pr.Read(p)
	if err == nil {
		st.stall.Reset(st.store.cfg.StallTimeout)
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		st.mu.Lock()
		if st.readAll.IsZero() {
			st.readAll = time.Now()
		}
		st.mu.Unlock()
	}
	return n, err
}

// Close ends the stream and waits until it holds nothing any more. It is idempotent.
func (st *liveStream) Close() error {
	st.stall.Stop()
	st.stop(errStreamClosed)
	_ = st.pr.CloseWithError(errStreamClosed)
	<-st.released
	st.store.mu.Lock()
	delete(st.store.streams, st)
	st.store.mu.Unlock()
	return nil
}

// holds says whether the consumer may still be installing: raft closes a stream
// only once the follower has answered. A stream that failed holds nothing, nor does
// one whose consumer never came back after its end.
func (st *liveStream) holds() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.cause == nil && (st.readAll.IsZero() || time.Since(st.readAll) < st.store.cfg.HoldTimeout)
}

// endStreams ends all live streams and waits until they have let go of the engine. A
// stream that is still being captured is told only: its Capture may be waiting for
// the very goroutine that is here, and it closes its reader as soon as it has it.
func (s *Store) endStreams(cause error) {
	s.mu.Lock()
	var all []*liveStream
	for st := range s.streams {
		all = append(all, st)
	}
	s.mu.Unlock()
	for _, st := range all {
		st.stop(cause)
		if st.captured() {
			<-st.released
		}
	}
}
