package raftstore

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	badger "github.com/dgraph-io/badger/v2"
	"github.com/hashicorp/raft"
)

// The child processes of the crash tests are this test binary again, told by the environment what to be.
const (
	roleEnv = "RAFTSTORE_TEST_ROLE"
	dirEnv  = "RAFTSTORE_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		flag.Parse()
		given := false
		flag.Visit(func(f *flag.Flag) { given = given || f.Name == "rapid.checks" })
		if !given {
			flag.Set("rapid.checks", "40") //nolint:errcheck // a run takes a tenth of a second
		}
		os.Exit(m.Run())
	case "writer":
		endWithParent()
		childWriter(os.Getenv(dirEnv))
	case "opener":
		endWithParent()
		childOpener(os.Getenv(dirEnv))
	case "truncater":
		childTruncater(os.Getenv(dirEnv))
	}
}

// endWithParent ends a child whose parent is gone: its standard input is closed then.
func endWithParent() {
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // any end is the end
		os.Exit(0)
	}()
}

const (
	crashBatch = 100
	crashSize  = 100
)

func childConfig(dir string) Config {
	return Config{
		Dir: dir, MemTableBytes: 8 << 20, MinFreeBytes: 1, StallTimeout: time.Hour,
		OnFatal: func(err error) { childFail(err) },
	}
}

func childFail(err error) {
	fmt.Println("FAIL", err)
	os.Exit(3)
}

// childWriter appends batches for ever and prints the last acknowledged index after each. Compaction is
// off and level 0 stalls early, as on a slow disk under load: several memtables wait to be flushed, and a
// crash has the most to replay.
func childWriter(dir string) {
	cfg := childConfig(dir)
	cfg.seams.tune = func(name string, o badger.Options) badger.Options {
		if name == "log" {
			return o.WithNumCompactors(0).WithNumLevelZeroTables(1).WithNumLevelZeroTablesStall(2)
		}
		return o
	}
	s, err := Open(cfg)
	if err != nil {
		childFail(err)
	}
	for next := uint64(1); ; next += crashBatch {
		if err := s.Logs().StoreLogs(entries(next, next+crashBatch-1, 1, crashSize)); err != nil {
			childFail(err)
		}
		fmt.Println(next + crashBatch - 1)
	}
}

// childOpener opens the store, says so, and waits to be killed.
func childOpener(dir string) {
	if _, err := Open(childConfig(dir)); err != nil {
		childFail(err)
	}
	fmt.Println("open")
	select {}
}

// child is a running child process and the lines it prints.
type child struct {
	cmd   *exec.Cmd
	stdin io.Writer
	lines chan string // what it prints, closed at its end
}

func startChild(t *testing.T, role, dir string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{cmd: exec.Command(self), lines: make(chan string, 1<<16)}
	c.cmd.Env = append(os.Environ(), roleEnv+"="+role, dirEnv+"="+dir)
	c.cmd.Stderr = os.Stderr
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(c.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			c.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() { c.cmd.Process.Kill() })
	return c
}

// kill sends SIGKILL, waits for the end and hands over the lines that were still unread.
func (c *child) kill(t *testing.T) (rest []string) {
	t.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGKILL); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	for line := range c.lines {
		rest = append(rest, line)
	}
	c.cmd.Wait() //nolint:errcheck // it was killed
	return rest
}

// TestTwoCrashesInARow shows Invariant B1: a writer is killed under load, then the process that reopens
// its store is killed too, in the middle of that and after it, and all acknowledged entries are there.
// Without the recovery open a part of the log is missing then.
func TestTwoCrashesInARow(t *testing.T) {
	dir := t.TempDir()
	acked := uint64(0)
	ack := func(line string) {
		n, err := strconv.ParseUint(line, 10, 64)
		if err != nil {
			t.Fatalf("writer: %s", line)
		}
		acked = n
	}

	// The first crash comes when the writer stalls, at the latest after some seconds.
	w := startChild(t, "writer", dir)
	deadline := time.NewTimer(12 * time.Second)
	defer deadline.Stop()
	quiet := time.NewTimer(5 * time.Second)
	defer quiet.Stop()
	for waiting := true; waiting; {
		select {
		case line, ok := <-w.lines:
			if !ok {
				t.Fatal("the writer ended by itself")
			}
			ack(line)
			quiet.Reset(time.Second)
		case <-quiet.C:
			waiting = false
		case <-deadline.C:
			waiting = false
		}
	}
	for _, line := range w.kill(t) {
		ack(line)
	}
	if acked == 0 {
		t.Fatal("the writer acknowledged nothing")
	}

	// The second, third and fourth hit the opening, the last comes when it is open.
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d entries acknowledged before the first crash", seed, acked)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 3 {
		o := startChild(t, "opener", dir)
		early := time.NewTimer(time.Duration(20+r.IntN(300)) * time.Millisecond)
		select {
		case line := <-o.lines:
			if line != "open" {
				t.Fatalf("opener: %s", line)
			}
		case <-early.C:
		}
		early.Stop()
		o.kill(t)
	}
	o := startChild(t, "opener", dir)
	if line := <-o.lines; line != "open" {
		t.Fatalf("opener: %s", line)
	}
	o.kill(t)

	s := mustOpen(t, testConfig(t, dir))
	first, last := s.Bounds()
	if first != 1 || last < acked {
		t.Fatalf("the log has %d..%d, acknowledged were 1..%d", first, last, acked)
	}
	missing := 0
	for i := uint64(1); i <= acked; i++ {
		var got raft.Log
		if err := s.logDB.read(func(in inner) error { return in.GetLog(i, &got) }); err != nil {
			missing++
			continue
		}
		if i%97 == 0 {
			if err := sameEntry(&got, entry(i, 1, crashSize)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if missing > 0 {
		t.Fatalf("%d of %d acknowledged entries are missing after two crashes", missing, acked)
	}
}

const (
	truncTotal = 6000
	truncFrom  = 501
)

// childTruncater fills a log, says so, deletes its suffix and says that too. Each chunk is announced from
// below this layer, so that the parent can kill it in between.
func childTruncater(dir string) {
	cfg := childConfig(dir)
	cfg.seams.wrap = func(name string, in inner) inner {
		if name != "log" {
			return in
		}
		return &hooked{inner: in, afterDelete: func(lo, hi uint64) {
			fmt.Println("chunk", lo, hi)
			bufio.NewReader(os.Stdin).ReadString('\n') //nolint:errcheck // stands still until it is told to go on, or killed
		}}
	}
	s, err := Open(cfg)
	if err != nil {
		childFail(err)
	}
	if err := s.Logs().StoreLogs(entries(1, truncTotal, 1, 50)); err != nil {
		childFail(err)
	}
	fmt.Println("filled")
	if err := s.Logs().DeleteRange(truncFrom, truncTotal); err != nil {
		childFail(err)
	}
	fmt.Println("done")
}

// TestSuffixDeletionCrash shows Invariant 4: a process that is killed between two chunks of a suffix
// deletion leaves a log without a hole.
func TestSuffixDeletionCrash(t *testing.T) {
	for _, chunks := range []int{1, 3, 10} {
		t.Run(fmt.Sprintf("after %d chunks", chunks), func(t *testing.T) {
			dir := t.TempDir()
			c := startChild(t, "truncater", dir)
			for n := 0; n < chunks; {
				line, ok := <-c.lines
				switch {
				case !ok:
					t.Fatal("the child ended by itself")
				case strings.HasPrefix(line, "FAIL"), line == "done":
					t.Fatalf("child: %s", line)
				case strings.HasPrefix(line, "chunk"):
					if n++; n < chunks {
						if _, err := c.stdin.Write([]byte("\n")); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			c.kill(t)

			s, err := Open(testConfig(t, dir))
			if err != nil {
				t.Fatalf("open after a crash within a suffix deletion: %v", err)
			}
			defer s.Close()
			first, last := s.Bounds()
			if want := uint64(truncTotal - chunks*deleteChunk); first != 1 || last != want {
				t.Fatalf("the log has %d..%d, want 1..%d", first, last, want)
			}
			checkRange(t, s.Logs(), 1, last, 1, 50)
			mustStore(t, s.Logs(), entries(last+1, last+10, 2, 50))
		})
	}
}

// TestPrefixDeletionCrash: whatever chunk of a prefix deletion a crash follows, the log has no hole and
// all that was to be kept. The crash is a copy of the folder taken between the chunks.
func TestPrefixDeletionCrash(t *testing.T) {
	root := t.TempDir()
	cfg := testConfig(t, root+"/live")
	var copies []string
	cfg.seams.wrap = func(name string, in inner) inner {
		return &hooked{inner: in, afterDelete: func(lo, hi uint64) {
			to := fmt.Sprintf("%s/crash-%d", root, hi)
			if err := os.CopyFS(to, os.DirFS(cfg.Dir)); err != nil {
				t.Error(err)
			}
			copies = append(copies, to)
		}}
	}
	s := mustOpen(t, cfg)
	mustStore(t, s.Logs(), entries(1, 1500, 1, 50))
	if err := s.Logs().DeleteRange(1, 1400); err != nil {
		t.Fatal(err)
	}
	if want := (1400 + deleteChunk - 1) / deleteChunk; len(copies) != want {
		t.Fatalf("%d chunks, want %d", len(copies), want)
	}
	for n, dir := range copies {
		s, err := Open(testConfig(t, dir))
		if err != nil {
			t.Fatalf("after chunk %d: %v", n, err)
		}
		first := min(uint64(n+1)*deleteChunk, 1400) + 1
		checkBounds(t, s.Logs(), first, 1500)
		checkRange(t, s.Logs(), first, 1500, 1, 50)
		mustClose(t, s)
	}
}
