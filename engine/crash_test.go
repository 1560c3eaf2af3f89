package engine

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	badger "github.com/dgraph-io/badger/v2"
)

// Crash tests kill real child processes. The test binary is its own child: the
// environment says which part to play, on which folder.
const (
	childRole = "ENGINE_TEST_ROLE"
	childDir  = "ENGINE_TEST_DIR"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(childRole); role != "" {
		if err := playChild(role, os.Getenv(childDir)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const crashKeys = 100 // entries of each revision of the crash writer

func crashEntries(ts uint64) []Entry {
	entries := make([]Entry, crashKeys)
	for i := range entries {
		k := binary.BigEndian.AppendUint64([]byte("d"), ts)
		entries[i] = Entry{Key: append(k, byte(i)), Value: bytes.Repeat([]byte{byte(ts)}, 100)}
	}
	return entries
}

// bigEntries is a revision of several parts; a crash may fall between them.
func bigEntries(ts uint64) []Entry {
	var entries []Entry
	for i := range 40 {
		entries = append(entries, Entry{Key: fmt.Appendf(nil, "p%02d", i), Value: bytes.Repeat([]byte{byte(ts), byte(i)}, 32<<10)})
	}
	return entries
}

// smallTables makes full memtables cheap. No user can set this.
func smallTables(o badger.Options) badger.Options {
	return o.WithMaxTableSize(2 << 20).WithValueThreshold(MaxValueBytes + 1)
}

// playChild never returns from the roles that are killed.
func playChild(role, dir string) error {
	cfg := Config{Dir: dir, OnFatal: func(err error) { fmt.Fprintln(os.Stderr, err); os.Exit(3) }}
	switch role {
	case "write":
		// With compaction standing still the crash leaves full memtables, so that
		// the replay of the next start fills its own: the case of Invariant B1.
		cfg.tune = func(o badger.Options) badger.Options {
			return smallTables(o).WithNumCompactors(0).WithNumLevelZeroTables(1).WithNumLevelZeroTablesStall(2)
		}
	case "open":
		cfg.tune = smallTables
	}
	if role == "full" {
		cfg.OnFatal = func(error) { fmt.Println(fatalReported) }
	}
	e, err := Open(cfg)
	if err != nil {
		return err
	}
	switch role {
	case "open":
		fmt.Println(0)
	case "write":
		for ts := uint64(1); ; ts++ {
			if err := e.Commit(ts, crashEntries(ts), event(ts)); err != nil {
				return err
			}
			if err := e.Flush(); err != nil {
				return err
			}
			fmt.Println(ts)
		}
	case "parts":
		for ts := uint64(1); ts < 1000; ts++ {
			if err := e.Commit(ts, bigEntries(ts), event(ts)); err != nil {
				return err
			}
			if err := e.Flush(); err != nil {
				return err
			}
			fmt.Println(ts)
		}
	case "full":
		return writeUntilFull(e, cfg.Dir)
	case "half":
		if err := e.Commit(1, bigEntries(1), event(1)); err != nil {
			return err
		}
		// The parts of revision 2 up to its final one, as a crash can leave them.
		entries := bigEntries(2)
		for {
			n, size, whole := partOf(entries, &Entry{})
			if whole {
				break
			}
			if err := e.queue(2, entries[:n], nil, size); err != nil {
				return err
			}
			entries = entries[n:]
		}
		if err := e.Flush(); err != nil {
			return err
		}
		fmt.Println(2)
	}
	select {}
}

// child starts a child process and returns a channel of the numbers it prints.
func child(t *testing.T, role, dir string) (*exec.Cmd, <-chan uint64) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role, childDir+"="+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // usually dead
		cmd.Wait()         //nolint:errcheck // killed
		if stderr.Len() > 0 {
			t.Errorf("%s: %s", role, stderr.Bytes())
		}
	})
	acks := make(chan uint64, 1<<16)
	go func() {
		defer close(acks)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			n, err := strconv.ParseUint(sc.Text(), 10, 64)
			if err != nil {
				return
			}
			acks <- n
		}
	}()
	return cmd, acks
}

// killAt kills the child once it has printed enough, or printed nothing for quiet,
// and returns the last number it printed.
func killAt(t *testing.T, cmd *exec.Cmd, acks <-chan uint64, enough uint64, quiet time.Duration) uint64 {
	t.Helper()
	var last uint64
	first := time.After(30 * time.Second)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
loop:
	for {
		select {
		case n, ok := <-acks:
			if !ok {
				break loop
			}
			last = n
			first = nil
			timer.Reset(quiet)
			if last >= enough {
				break loop
			}
		case <-timer.C:
			break loop
		case <-first:
			t.Fatal("the child does nothing")
		}
	}
	must(t, cmd.Process.Kill())
	for n := range acks {
		last = n
	}
	return last
}

func copyDir(t *testing.T, from string) string {
	t.Helper()
	to := freshDir(t)
	must(t, os.CopyFS(to, os.DirFS(from)))
	return to
}

// missing reports the revisions up to last that are not whole.
func missing(t *testing.T, dir string, last uint64) []string {
	t.Helper()
	e := open(t, dir, func(c *Config) { c.tune = smallTables })
	defer e.Close()
	counts := make(map[uint64]int)
	r := readAt(t, e, unpublished)
	defer r.Close()
	it := r.Scan(ScanOptions{})
	for it.Next() {
		ts := binary.BigEndian.Uint64(it.Key()[1:])
		if it.Version() != ts {
			t.Fatalf("key of revision %d at %d", ts, it.Version())
		}
		counts[ts]++
	}
	must(t, it.Err())
	var bad []string
	for ts := uint64(1); ts <= last; ts++ {
		if n := counts[ts]; n != crashKeys+1 {
			bad = append(bad, fmt.Sprintf("revision %d has %d of %d", ts, n, crashKeys+1))
		}
	}
	for ts, n := range counts {
		if ts > last && n != crashKeys+1 {
			bad = append(bad, fmt.Sprintf("unacknowledged revision %d has %d of %d", ts, n, crashKeys+1))
		}
	}
	return bad
}

// TestEngineTwoCrashesInARow: a crash under load, a start that is killed as soon as
// it is up, and nothing that was acknowledged may be missing (Invariant B1). Without
// the recovery open a revision in the middle of history loses keys.
func TestEngineTwoCrashesInARow(t *testing.T) {
	const trials = 2
	for trial := range trials {
		dir := freshDir(t)
		// The writer ends by itself when level 0 is full.
		cmd, acks := child(t, "write", dir)
		last := killAt(t, cmd, acks, 1<<40, 700*time.Millisecond)
		if last < 300 {
			t.Fatalf("only %d revisions written: no full memtable left to replay", last)
		}
		if bad := missing(t, copyDir(t, dir), last); len(bad) > 0 {
			t.Fatalf("trial %d: after one crash at %d: %q", trial, last, bad)
		}
		cmd, acks = child(t, "open", dir)
		killAt(t, cmd, acks, 1<<40, 400*time.Millisecond)
		if bad := missing(t, dir, last); len(bad) > 0 {
			t.Fatalf("trial %d: after two crashes, the first at %d: %q", trial, last, bad)
		}
	}
}

// TestCrashBetweenParts: a revision whose parts are there and whose final part is not
// is invisible above the last published one, and committing it again completes it.
func TestCrashBetweenParts(t *testing.T) {
	dir := freshDir(t)
	cmd, acks := child(t, "half", dir)
	killAt(t, cmd, acks, 2, time.Minute)

	e := open(t, dir)
	r := readAt(t, e, unpublished)
	if _, ver, _, err := r.Get([]byte("p00")); err != nil || ver != 2 {
		t.Fatalf("the crash left nothing of revision 2: version %d, %v", ver, err)
	}
	if got := scan(t, r, ScanOptions{Start: []byte("e"), End: []byte("f")}); len(got) != 1 {
		t.Fatalf("events %q", got)
	}
	r.Close()
	e.Publish(1)
	if _, err := e.ReadAt(2); err == nil {
		t.Error("a reader above the published revision")
	}
	checkBig(t, e, 1)
	for range 2 { // the second time over a reopen, as after one more crash
		must(t, e.Commit(2, bigEntries(2), event(2)))
		e.Publish(2)
		checkBig(t, e, 1)
		checkBig(t, e, 2)
		must(t, e.Close())
		e = open(t, dir)
		e.Publish(2)
	}
	must(t, e.Compact(context.Background()))
	checkBig(t, e, 1)
	checkBig(t, e, 2)
	h := newHistory()
	h.commit(1, bigEntries(1))
	h.commit(2, bigEntries(2))
	if got, err := export(readAt(t, e, 2), 0); err != nil || !bytes.Equal(got, h.export(2, 0)) {
		t.Errorf("export: %d bytes, %v", len(got), err)
	}
}

func checkBig(t *testing.T, e *Engine, ts uint64) {
	t.Helper()
	r := readAt(t, e, ts)
	defer r.Close()
	for _, en := range append(bigEntries(ts), event(ts)) {
		v, ver, _, err := r.Get(en.Key)
		if err != nil || ver != ts || !bytes.Equal(v, en.Value) {
			t.Fatalf("%q at %d: version %d, %d bytes, %v", en.Key, ts, ver, len(v), err)
		}
	}
}

// TestCrashAmongParts kills a writer of big revisions anywhere: whoever finds a
// revision's final entry finds all of it.
func TestCrashAmongParts(t *testing.T) {
	for trial := range 4 {
		dir := freshDir(t)
		cmd, acks := child(t, "parts", dir)
		last := killAt(t, cmd, acks, uint64(2+3*trial), time.Minute)
		tearLog(t, dir, trial*9000)
		e := open(t, dir)
		r := readAt(t, e, unpublished)
		events := scan(t, r, ScanOptions{Start: []byte("e"), End: []byte("f")})
		r.Close()
		newest := uint64(len(events))
		if trial == 0 && newest < last {
			t.Fatalf("%d revisions acknowledged, %d there", last, newest)
		}
		if newest == 0 {
			t.Fatal("nothing left to check")
		}
		for ts := uint64(1); ts <= newest; ts++ {
			checkBig(t, e, ts)
		}
		must(t, e.Commit(newest+1, bigEntries(newest+1), event(newest+1)))
		must(t, e.Flush())
		checkBig(t, e, newest+1)
		must(t, e.Close())
	}
}

// tearLog cuts n bytes off the newest log file, as a power cut can.
func tearLog(t *testing.T, dir string, n int) {
	t.Helper()
	logs, err := filepath.Glob(filepath.Join(dir, "*.vlog"))
	must(t, err)
	name := logs[len(logs)-1]
	info, err := os.Stat(name)
	must(t, err)
	must(t, os.Truncate(name, max(info.Size()-int64(n), 0)))
}
