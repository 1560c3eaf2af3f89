package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// beSett in the environment makes this test binary the sett that it tests, its
// children included: the same code, with no second build.
const beSett = "TEST_BE_SETT"

func TestMain(m *testing.M) {
	if os.Getenv(beSett) != "" {
		main()
	}
	os.Exit(m.Run())
}

// program makes a command of the sett under test.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), beSett+"=1")
	return cmd
}

// devRun is a running `sett dev`.
type devRun struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string // its output; closed at its end
	all   []string
}

func startDev(t *testing.T, tmp string, args ...string) *devRun {
	t.Helper()
	d := &devRun{t: t, cmd: program(t, append([]string{"dev"}, args...)...), lines: make(chan string, 1000)}
	d.cmd.Env = append(d.cmd.Env, "TMPDIR="+tmp, "SETT_NO_SUCH_SETTING=not for the nodes")
	pipe, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stderr = d.cmd.Stdout
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.cmd.Process.Kill() })
	go func() {
		defer close(d.lines)
		for s := bufio.NewScanner(pipe); s.Scan(); {
			d.lines <- s.Text()
		}
	}()
	return d
}

// until reads the output up to a line that matches, and returns its groups.
func (d *devRun) until(pattern string) []string {
	d.t.Helper()
	re := regexp.MustCompile(pattern)
	limit := time.NewTimer(25 * time.Second)
	defer limit.Stop()
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("sett dev ended without %q:\n%s", pattern, strings.Join(d.all, "\n"))
			}
			d.all = append(d.all, line)
			if m := re.FindStringSubmatch(line); m != nil {
				return m
			}
		case <-limit.C:
			d.t.Fatalf("no %q in time:\n%s", pattern, strings.Join(d.all, "\n"))
		}
	}
}

// processes reads which process each node is.
func (d *devRun) processes(nodes int) []int {
	d.t.Helper()
	var pids []int
	for range nodes {
		m := d.until(`node\d  starting as process (\d+), log in `)
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			d.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// endpoints waits until the cluster takes writes.
func (d *devRun) endpoints(nodes int) []string {
	d.t.Helper()
	d.until(`^Leader is node\d. The cluster takes reads and writes`)
	var urls []string
	for range nodes {
		urls = append(urls, d.until(`^  node\d  (http://\S+)`)[1])
	}
	d.until("Ctrl-C stops all of it")
	return urls
}

// end stops it as Ctrl-C does and waits for it.
func (d *devRun) end() error {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		d.t.Fatal(err)
	}
	for line := range d.lines {
		d.all = append(d.all, line)
	}
	return d.cmd.Wait()
}

func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }

func httpDo(t *testing.T, method, url, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// The newcomer's door: one command, three nodes, PUT and GET on each, Ctrl-C leaves
// nothing behind; with a data folder the cluster comes back.
func TestDev(t *testing.T) {
	tmp := t.TempDir()

	t.Run("temporary", func(t *testing.T) {
		d := startDev(t, tmp, "--http-base", "0")
		pids := d.processes(3)
		urls := d.endpoints(3)
		for i, url := range urls {
			if status, body := httpDo(t, http.MethodPut, fmt.Sprintf("%s/v1/kv/key%d", url, i), "value"); status != http.StatusCreated {
				t.Errorf("PUT on %s: %d %s", url, status, body)
			}
		}
		for _, url := range urls {
			for i := range urls {
				if status, body := httpDo(t, http.MethodGet, fmt.Sprintf("%s/v1/kv/key%d", url, i), ""); status != http.StatusOK || body != "value" {
					t.Errorf("GET key%d on %s: %d %s", i, url, status, body)
				}
			}
		}
		out, err := program(t, "status", "--output", "raw", "--endpoints", urls[0]).Output()
		if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err != nil || len(lines) != 3 {
			t.Errorf("status: %v\n%s", err, out)
		}

		// A node that dies is told of, and the other two go on.
		if err := syscall.Kill(pids[2], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		d.until(`^node3 stopped \(signal: killed, log in .*2 of 3 nodes left`)
		if status, body := httpDo(t, http.MethodPut, urls[0]+"/v1/kv/key0?timeout=20s", "again"); status != http.StatusNoContent {
			t.Errorf("PUT with two nodes: %d %s", status, body)
		}

		if err := d.end(); err != nil {
			t.Errorf("end: %v\n%s", err, strings.Join(d.all, "\n"))
		}
		for _, pid := range pids {
			if alive(pid) {
				t.Errorf("process %d is left", pid)
			}
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("files are left: %v %v", left, err)
		}
	})

	t.Run("data folder", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "data")
		for round := range 2 {
			d := startDev(t, tmp, "--nodes", "1", "--http-base", "0", "--data-dir", dir)
			d.processes(1)
			url := d.endpoints(1)[0] + "/v1/kv/kept"
			if round == 0 {
				httpDo(t, http.MethodPut, url, "kept")
			} else if status, body := httpDo(t, http.MethodGet, url, ""); status != http.StatusOK || body != "kept" {
				t.Errorf("after a restart: %d %s", status, body)
			}
			if err := d.end(); err != nil {
				t.Errorf("end: %v\n%s", err, strings.Join(d.all, "\n"))
			}
		}
		out, err := program(t, "dev", "--nodes", "2", "--data-dir", dir).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "holds a cluster of 1 nodes") {
			t.Errorf("another number of nodes: %v %s", err, out)
		}
	})

	t.Run("killed", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Log("only Linux lets children die with their parent")
			return
		}
		d := startDev(t, tmp, "--nodes", "2", "--http-base", "0")
		pids := d.processes(2)
		if err := d.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = d.cmd.Wait()
		tick, limit := time.NewTicker(20*time.Millisecond), time.NewTimer(10*time.Second)
		defer tick.Stop()
		defer limit.Stop()
		for alive(pids[0]) || alive(pids[1]) {
			select {
			case <-tick.C:
			case <-limit.C:
				t.Fatal("the nodes outlive sett dev")
			}
		}
	})

	t.Run("busy port", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
		out, err := program(t, "dev", "--nodes", "1", "--http-base", port).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitOther || !strings.HasSuffix(string(out), "port "+port+" is needed for the HTTP API of node1 and is in use: choose other ports with --http-base\n") {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// serve says in one line why it cannot start.
func TestServeRefusals(t *testing.T) {
	dir := t.TempDir()
	args := []string{"serve", "--data-dir", dir, "--http-addr", "127.0.0.1:0", "--raft-addr", "127.0.0.1:0", "--gossip-addr", "127.0.0.1:0", "--bootstrap-expect", "1", "--log-format", "json"}
	first := program(t, append(args, "--id", "a")...)
	pipe, err := first.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Process.Kill() }()
	if !bufio.NewScanner(pipe).Scan() { // its first line of log: the folder is locked
		t.Fatal("the first node logs nothing")
	}
	go func() { _, _ = io.Copy(io.Discard, pipe) }()

	refused := func(what, id, want string) {
		t.Helper()
		out, err := program(t, append(args, "--id", id)...).CombinedOutput()
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		var exit *exec.ExitError
		if last := lines[len(lines)-1]; !errors.As(err, &exit) || exit.ExitCode() != exitOther || !strings.HasPrefix(last, "sett: ") || !strings.Contains(last, want) {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
	refused("a locked folder", "a", dir)
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
	refused("another id", "b", `"a"`)
}

// TestDevFolder: sett dev keeps to folders of its own, one at a time.
func TestDevFolder(t *testing.T) {
	dir := t.TempDir()
	lock, err := takeDevFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeDevFolder(dir); err == nil || exitCode(err) == exitUsage {
		t.Errorf("a folder in use: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if lock, err = takeDevFolder(dir); err != nil {
		t.Fatalf("a folder of an earlier run: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	older := t.TempDir()
	if err := os.WriteFile(filepath.Join(older, devPlanName), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if lock, err = takeDevFolder(older); err != nil {
		t.Errorf("a folder from before there was a lock: %v", err)
	} else if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	foreign := t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "file"), []byte("hi"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := takeDevFolder(foreign); exitCode(err) != exitUsage {
		t.Errorf("a folder of something else: %v", err)
	}
	if entries, err := os.ReadDir(foreign); err != nil || len(entries) != 1 {
		t.Errorf("it was changed: %v, %v", entries, err)
	}
}
