package snapshot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/settkv/sett/engine"
	"github.com/settkv/sett/kv"
)

var errCancelled = errors.New("install was cancelled")

// install writes one stream into a fresh generation. One goroutine reads what is
// written to it; it ends at the stream's end, at the first error, and on abort.
type install struct {
	store *Store
	name  string
	// check looks at the stream's header before anything is created.
	check func(Header) error
	pw    *io.PipeWriter
	done  chan struct{}

	// err is set before done is closed.
	err  error
	once sync.Once
}

// startInstall begins an install into a generation of the given name.
func (s *Store) startInstall(name string, check func(Header) error) (*install, error) {
	s.mu.Lock()
	if err := s.usableLocked(); err != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("install snapshot: %w", err)
	}
	pr, pw := io.Pipe()
	in := &install{store: s, name: name, check: check, pw: pw, done: make(chan struct{})}
	s.installs[in] = struct{}{}
	stale := s.pending
	s.pending = nil
	s.mu.Unlock()
	go in.run(pr, stale)
	return in, nil
}

// Write hands p over; it returns the install's error once there is one.
func (in *install) Write(p []byte) (int, error) {
	n, err := in.pw.Write(p)
	if err != nil {
		<-in.done
		if in.err != nil {
			err = in.err
		}
	}
	return n, err
}

// finish says that the stream is at its end, and waits until the new generation is
// verified and durable, or gone.
func (in *install) finish() error {
	in.once.Do(func() { _ = in.pw.Close() })
	<-in.done
	return in.err
}

// abort ends the install, unless it is finished already, and waits until nothing is
// left of it.
func (in *install) abort(cause error) {
	in.once.Do(func() { _ = in.pw.CloseWithError(cause) })
	<-in.done
}

func (in *install) run(pr *io.PipeReader, stale *generation) {
	s := in.store
	defer close(in.done)
	if stale != nil {
		// It was never switched in, and two copies are one too many for the disk.
		if err := discardGeneration(stale); err != nil {
			s.log.Warn("could not discard an unused install", "error", err)
		}
	}
	g, err := in.receive(pr)
	if err != nil {
		in.err = fmt.Errorf("install snapshot: %w", err)
		if rerr := os.RemoveAll(in.dir()); rerr != nil {
			s.log.Warn("could not delete a failed install", "generation", in.name, "error", rerr)
		}
	}
	s.mu.Lock()
	delete(s.installs, in)
	if err == nil {
		s.pending = g
	}
	s.mu.Unlock()
	_ = pr.CloseWithError(in.err)
	if err == nil {
		s.cfg.step("install: pending")
	}
}

func (in *install) dir() string { return filepath.Join(in.store.cfg.Dir, in.name) }

// receive reads the stream into a fresh generation and returns it open, verified and
// durable. On an error its folder may be left.
func (in *install) receive(r io.Reader) (*generation, error) {
	s := in.store
	d := newDecoder(r)
	h, err := d.header()
	if err != nil {
		return nil, err
	}
	if err := in.admit(h); err != nil {
		return nil, err
	}
	// Invariant 17: a fresh folder, never over live data.
	if _, err := createGeneration(s.cfg.Dir, in.name); err != nil {
		return nil, err
	}
	s.cfg.step("install: folder created")
	if mutantSwitchBeforeVerify {
		_ = writeLabel(in.dir(), h.Label)
		_ = writeCurrent(s.cfg.Dir, in.name)
	}
	sum, err := in.fill(d)
	if err != nil {
		return nil, err
	}
	if err := syncTree(in.dir()); err != nil {
		return nil, err
	}
	if err := writeLabel(in.dir(), h.Label); err != nil {
		return nil, err
	}
	s.cfg.step("install: label written")
	g := &generation{name: in.name, dir: in.dir(), label: h.Label, labeled: true}
	// A StreamWriter's database has to be reopened before use, and opening it checks
	// every table; better here, where the old state is in use, than after the switch.
	if g.eng, err = engine.Open(s.engineConfig(g.dir)); err != nil {
		return nil, err
	}
	if err := verifyDatabase(g.eng, sum); err != nil {
		return nil, errors.Join(err, g.eng.Close())
	}
	return g, nil
}

// admit decides whether a stream with this header may be installed.
func (in *install) admit(h Header) error {
	s := in.store
	if h.BaseRevision != 0 {
		return kv.Errorf(kv.CodeInvalidArgument, "stream is an increment on revision %d, not a whole state", h.BaseRevision)
	}
	if err := in.check(h); err != nil {
		return err
	}
	// A stream that was delayed on the way must not take the state back behind what
	// this server has made durable and told others.
	if l, ok := s.Label(); ok && h.Label.Index < l.Index {
		return kv.Errorf(kv.CodeConflict, "stream at index %d is older than the current snapshot at %d", h.Label.Index, l.Index)
	}
	free, err := s.cfg.freeBytes(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("look at free space: %w", err)
	}
	floor := s.cfg.Engine.MinFreeBytes
	if free < floor || free-floor < h.Size {
		return kv.Errorf(kv.CodeDiskFull, "installing a snapshot takes %d bytes beyond the floor of %d, %d are free; add disk space", h.Size, floor, free)
	}
	return nil
}

// fill writes the stream's content into the fresh database, closes it, and returns
// what the end record has confirmed.
func (in *install) fill(d *decoder) (Summary, error) {
	s := in.store
	cfg := s.engineConfig(in.dir())
	// Its errors are returned; none of them hurts the state in use.
	cfg.OnFatal = nil
	w, err := engine.CreateRestore(cfg)
	if err != nil {
		return Summary{}, err
	}
	for first := true; ; first = false {
		var batch []engine.Record
		batch, err = d.next()
		if err == nil {
			err = w.Write(batch)
		}
		if err != nil {
			break
		}
		if first {
			s.cfg.step("install: mid-stream")
		}
	}
	if !errors.Is(err, io.EOF) {
		w.Abort()
		return Summary{}, err
	}
	s.cfg.step("install: before verification")
	sum, err := d.finish()
	if err == nil {
		err = d.end()
	}
	if err != nil {
		w.Abort()
		return Summary{}, err
	}
	s.cfg.step("install: after verification")
	if err := w.Close(); err != nil {
		return Summary{}, err
	}
	s.cfg.step("install: database closed")
	return sum, nil
}

// verifyDatabase exports the database again and requires the very stream that it was
// made from.
func verifyDatabase(eng *engine.Engine, want Summary) error {
	r, err := eng.ReadAt(want.Header.Label.Revision)
	if err != nil {
		return fmt.Errorf("read installed database: %w", err)
	}
	defer r.Close()
	got, err := writeStream(io.Discard, want.Header, r)
	if err != nil {
		return fmt.Errorf("read installed database: %w", err)
	}
	if got.SHA256 != want.SHA256 {
		return corrupt("installed database differs from its stream: %d of %d records", got.Records, want.Records)
	}
	return nil
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// The pending pointer is what raft reads when it "opens" an installed snapshot in
// order to restore it: the content is on disk already, so only its name travels.
const (
	pendingMagic   = "SETTPEND"
	pendingVersion = 1
)

// encodePending returns magic, version, name length, name, checksum.
func encodePending(name string) []byte {
	b := append([]byte(nil), pendingMagic...)
	b = binary.LittleEndian.AppendUint32(b, pendingVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(name)))
	b = append(b, name...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// PendingID reads the name of an installed generation, for Switch, from what
// raft hands to the state machine's Restore. Anything else is an error: a state
// machine can't be restored from a snapshot's content.
func PendingID(r io.Reader) (string, error) {
	want := encodePending(newGenerationName())
	b, err := io.ReadAll(io.LimitReader(r, int64(len(want))+1))
	if err != nil {
		return "", fmt.Errorf("read pending snapshot: %w", err)
	}
	if len(b) != len(want) || !bytes.Equal(b[:16], want[:16]) {
		return "", corrupt("not the name of an installed snapshot")
	}
	name := string(b[16 : len(b)-4])
	if !bytes.Equal(b, encodePending(name)) || !isGenerationName(name) {
		return "", corrupt("the name of the installed snapshot is damaged")
	}
	return name, nil
}
