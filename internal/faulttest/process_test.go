package faulttest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

// buildDir holds the binary; empty until it is built. TestMain removes it.
var buildDir string

// binary builds sett once for this test process, unless it is given one.
var binary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("SETT_FAULT_BINARY"); path != "" {
		return filepath.Abs(path)
	}
	dir, err := os.MkdirTemp("", "sett-fault")
	if err != nil {
		return "", err
	}
	buildDir = dir
	path := filepath.Join(dir, "sett")
	cmd := exec.Command("go", "build", "-tags", os.Getenv("SETT_FAULT_TAGS"), "-o", path, "github.com/settkv/sett/cmd/sett")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sett: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	rc := m.Run()
	if buildDir != "" {
		if err := os.RemoveAll(buildDir); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(rc)
}

// starts runs functions on one thread that never ends: a process is told to die
// with the thread that started it, and so dies with this test process, however
// that ends.
var starts = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

// node is one sett process that is started again and again with the same line.
type node struct {
	id   string
	url  string
	dir  string // its data folder
	log  string // what it printed, all its lives one after the other
	args []string

	cmd  *exec.Cmd
	gone chan struct{} // closed when the process has ended
	err  error         // of the ended process; read after gone
}

// start begins a life of the process and does not wait for anything.
func (n *node) start(t *testing.T) {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, n.args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = withoutSettings(os.Environ())
	cmd.SysProcAttr = dieWithParent()
	started := make(chan error)
	starts() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	n.cmd, n.gone = cmd, gone
	go func() {
		n.err = cmd.Wait()
		out.Close()
		close(gone)
	}()
}

// withoutSettings drops SETT_… variables: the nodes have their flags, and refuse
// variables that they do not know, as those of this package.
func withoutSettings(env []string) []string {
	var kept []string
	for _, v := range env {
		if !strings.HasPrefix(v, "SETT_") {
			kept = append(kept, v)
		}
	}
	return kept
}

// kill ends the process as a power switch would, and waits until it is gone.
func (n *node) kill() {
	// That it has ended already is no error.
	_ = n.cmd.Process.Signal(syscall.SIGKILL)
	<-n.gone
}

// running says whether the process still lives.
func (n *node) running() bool {
	select {
	case <-n.gone:
		return false
	default:
		return true
	}
}

// tail returns the last lines of the node's output.
func (n *node) tail(lines int) string {
	data, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimRight(data, "\n"), []byte("\n"))
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return string(bytes.Join(all, []byte("\n")))
}

// cluster is three nodes on loopback.
type cluster struct {
	t     *testing.T
	nodes []*node
	urls  []string
}

// newCluster starts three nodes with further arguments and waits until they are
// ready. Their processes end with the test; their logs are printed if it fails.
func newCluster(t *testing.T, args ...string) *cluster {
	t.Helper()
	const size = 3
	ports, err := blackbox.FreePorts(3 * size)
	if err != nil {
		t.Fatal(err)
	}
	at := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	var join []string
	for i := range size {
		join = append(join, at(3*i+2))
	}
	c := &cluster{t: t}
	dir := t.TempDir()
	for i := range size {
		id := "n" + strconv.Itoa(i+1)
		n := &node{
			id: id, url: "http://" + at(3*i),
			dir: filepath.Join(dir, id), log: filepath.Join(dir, id+".log"),
		}
		n.args = append([]string{
			"serve", "--id", id, "--data-dir", n.dir,
			"--http-addr", at(3 * i), "--raft-addr", at(3*i + 1), "--gossip-addr", at(3*i + 2),
			"--bootstrap-expect", strconv.Itoa(size), "--join", strings.Join(join, ","),
			"--log-format", "text",
		}, args...)
		c.nodes = append(c.nodes, n)
		c.urls = append(c.urls, n.url)
	}
	t.Cleanup(c.end)
	for _, n := range c.nodes {
		n.start(t)
	}
	c.must(blackbox.AwaitReady(c.within(60*time.Second), c.urls...))
	return c
}

// end stops everything and, if the test failed, shows what the nodes said.
func (c *cluster) end() {
	for _, n := range c.nodes {
		if n.cmd == nil {
			continue
		}
		if !n.running() {
			c.t.Logf("%s had ended: %v", n.id, n.err)
		}
		n.kill()
	}
	if !c.t.Failed() {
		return
	}
	for _, n := range c.nodes {
		if n.cmd == nil {
			continue
		}
		c.t.Logf("--- last lines of %s (%s)\n%s", n.id, n.url, n.tail(60))
	}
}

// must fails the test at once if err is set.
func (c *cluster) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

// within is a context that ends after d or with the test.
func (c *cluster) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), d)
	c.t.Cleanup(cancel)
	return ctx
}

// byID returns the node of that name.
func (c *cluster) byID(id string) *node {
	for _, n := range c.nodes {
		if n.id == id {
			return n
		}
	}
	c.t.Fatalf("there is no node %q", id)
	return nil
}

func (c *cluster) leader() *node {
	c.t.Helper()
	id, err := blackbox.AwaitLeader(c.within(20*time.Second), c.urls, "")
	c.must(err)
	return c.byID(id)
}

// mustRun fails the test if a node has ended that nobody killed.
func (c *cluster) mustRun() {
	c.t.Helper()
	for _, n := range c.nodes {
		if !n.running() {
			c.t.Fatalf("%s ended by itself: %v", n.id, n.err)
		}
	}
}

// load starts a load; the returned function ends it and waits for its last writes.
func (c *cluster) load(l blackbox.Load) (*blackbox.Ledger, func()) {
	ledger := blackbox.NewLedger(nil)
	l.Endpoints, l.Ledger = c.urls, ledger
	ctx, cancel := context.WithCancel(c.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	stop := func() {
		cancel()
		<-done
	}
	c.t.Cleanup(stop)
	return ledger, stop
}

// goesOn waits until n more writes were acknowledged.
func (c *cluster) goesOn(l *blackbox.Ledger, n int) {
	c.t.Helper()
	c.must(blackbox.AwaitAcked(c.within(30*time.Second), l, l.Counts().Acked+n))
}

// judge holds every node to the ledger, and all of them to one digest. The load
// has ended.
func (c *cluster) judge(l *blackbox.Ledger) {
	c.t.Helper()
	c.mustRun()
	c.must(blackbox.AwaitReady(c.within(30*time.Second), c.urls...))
	status, err := blackbox.AwaitEqual(c.within(30*time.Second), c.urls)
	if err != nil {
		c.t.Error(err)
	}
	bad := l.Violations()
	for _, n := range c.nodes {
		lines, err := blackbox.Verify(c.within(3*time.Minute), n.url, l)
		c.must(err)
		bad = append(bad, lines...)
	}
	if len(bad) > 0 {
		c.t.Errorf("promises were broken:\n  %s", strings.Join(bad, "\n  "))
	}
	c.t.Logf("%s; %d keys read through each of %d nodes; digest %.16s… at revision %d",
		l.Counts(), len(l.Keys()), len(c.nodes), status.Digest.Hash, status.Digest.Revision)
}

// serverIDs returns the Raft identity of each node by its name.
func (c *cluster) serverIDs() map[string]string {
	c.t.Helper()
	info, err := blackbox.AwaitVoters(c.within(40*time.Second), c.urls, len(c.nodes))
	c.must(err)
	ids := map[string]string{}
	for _, m := range info.Members {
		ids[m.ID] = m.ServerID
	}
	return ids
}

// setting reads a number from the environment.
func setting(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: want a number", name, text)
	}
	return n
}

// inCI says whether CI's length was asked for.
func inCI(t *testing.T) bool {
	t.Helper()
	switch mode := os.Getenv("SETT_FAULT"); mode {
	case "":
		return false
	case "ci":
		return true
	default:
		t.Fatalf("SETT_FAULT=%q: want ci, or nothing", mode)
		return false
	}
}
