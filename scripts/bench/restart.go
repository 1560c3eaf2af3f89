package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

// server is one `sett serve` that can be killed and started again.
type server struct {
	path string
	args []string
	log  string
	url  string
	cmd  *exec.Cmd
}

func (s *server) start() error {
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the process has its own
	s.cmd = exec.Command(s.path, s.args...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this program
	return s.cmd.Start()
}

func (s *server) kill() {
	_ = s.cmd.Process.Kill() // it may have ended by itself
	_ = s.cmd.Wait()         // it says that it was killed
}

// newServers are three members of a new cluster, not started.
func newServers(path, data string) ([]*server, error) {
	const nodes = 3
	ports, err := blackbox.FreePorts(3 * nodes)
	if err != nil {
		return nil, err
	}
	address := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	servers := make([]*server, nodes)
	for i := range servers {
		name := "node" + strconv.Itoa(i+1)
		servers[i] = &server{
			path: path, url: "http://" + address(i), log: filepath.Join(data, name+".log"),
			args: []string{
				"serve", "--id", name, "--data-dir", filepath.Join(data, name), "--bootstrap-expect", strconv.Itoa(nodes),
				"--http-addr", address(i), "--raft-addr", address(nodes + i), "--gossip-addr", address(2*nodes + i),
				"--join", address(2*nodes) + "," + address(2*nodes+1) + "," + address(2*nodes+2),
			},
		}
	}
	return servers, nil
}

// measureRestart writes o.restartKeys keys to three nodes, kills all of them with
// SIGKILL during more writes, starts them again, and prints when each was ready.
func measureRestart(ctx context.Context, o options) error {
	data, err := os.MkdirTemp("", "sett-bench")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(data) }() // a rest in the folder for temporary files at worst
	servers, err := newServers(o.sett, data)
	if err != nil {
		return err
	}
	var urls []string
	for _, s := range servers {
		urls = append(urls, s.url)
		if err := s.start(); err != nil {
			return err
		}
		defer s.kill()
	}
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := blackbox.AwaitReady(soon, urls...); err != nil {
		return err
	}
	began := time.Now()
	if err := fill(ctx, o, urls); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Printf("%d keys of %d bytes written in %v, %.0f a second\n", o.restartKeys, o.valueBytes, took.Round(time.Second), float64(o.restartKeys)/took.Seconds())
	for _, round := range []struct {
		what    string
		victims []*server
	}{{"one of three", servers[:1]}, {"all three", servers}} {
		if err := restartAll(ctx, o, round.victims, urls); err != nil {
			return fmt.Errorf("%s: %w", round.what, err)
		}
	}
	st, err := blackbox.FetchStatus(ctx, urls[0])
	if err != nil {
		return err
	}
	fmt.Printf("keys after it: %d\n", st.Keys)
	if st.Keys < uint64(o.restartKeys) {
		return fmt.Errorf("%d keys were acknowledged, %d are there", o.restartKeys, st.Keys)
	}
	return nil
}

// restartAll kills the victims under load and times their way back.
func restartAll(ctx context.Context, o options, victims []*server, urls []string) error {
	load, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	const clients = 16
	o.duration = time.Hour // until stop
	wg.Go(func() { measurement{op: put, urls: urls, clients: clients, options: o}.run(load) })
	timer := time.NewTimer(3 * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	for _, s := range victims {
		s.kill()
	}
	stop()
	wg.Wait()
	ready := make([]time.Duration, len(victims))
	errs := make([]error, len(victims))
	began := time.Now()
	for i, s := range victims {
		if err := s.start(); err != nil {
			return err
		}
		wg.Go(func() { ready[i], errs[i] = timeToReady(ctx, s.url, began) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	texts := make([]string, len(ready))
	for i, d := range ready {
		texts[i] = d.Round(time.Millisecond).String()
	}
	fmt.Printf("kill -9 of %d of %d under load, started again: ready after %s\n", len(victims), len(urls), strings.Join(texts, ", "))
	return nil
}

func timeToReady(ctx context.Context, url string, began time.Time) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := blackbox.Fetch(ctx, http.MethodGet, url+"/readyz"); err == nil {
			return time.Since(began), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, fmt.Errorf("%s is not ready: %w", url, ctx.Err())
		}
	}
}

// fill writes each of o.restartKeys keys once.
func fill(ctx context.Context, o options, urls []string) error {
	const clients = 96
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	value := make([]byte, o.valueBytes)
	for i := range value {
		value[i] = byte('a' + i%26)
	}
	for i := range clients {
		wg.Go(func() {
			c := newClient(urls[i%len(urls)])
			defer c.close()
			for ctx.Err() == nil {
				n := next.Add(1)
				if n > int64(o.restartKeys) {
					return
				}
				target := fmt.Sprintf("/v1/kv/million/%08d", n)
				for ctx.Err() == nil && c.do(http.MethodPut, target, value) != nil {
					failed.Add(1) // a put of the same value may be repeated
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		fmt.Printf("%d requests failed and were repeated\n", n)
	}
	return ctx.Err()
}
