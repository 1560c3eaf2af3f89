package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

// figures are what one measurement comes down to; `etcd load` prints them as JSON.
type figures struct {
	PerSecond float64       `json:"per_second"`
	P50       time.Duration `json:"p50_ns"`
	P99       time.Duration `json:"p99_ns"`
	Errors    int           `json:"errors"`
	// CPU is the processor time that all nodes together took for one operation.
	CPU time.Duration `json:"-"`
}

// comparison alternates between Sett and etcd, so that whatever else the machine does
// meets both, and a ratio comes from neighbouring rounds of one run.
type comparison struct {
	options
	urls []string // of the Sett cluster
	pids []int    // of its nodes
	etcd *etcdCluster
}

func (c comparison) run(ctx context.Context) error {
	fmt.Printf("3 nodes each, values of %d bytes, %d rounds of %v each in turn, closed loop, clients spread over all nodes\n", c.valueBytes, c.rounds, c.duration)
	fmt.Printf("each line is the median of its rounds; the ratio (sett by etcd) is the median of the rounds' ratios; cpu/op is of the nodes alone\n\n")
	// Warm both up, and write the keys that the reads will find.
	for _, measure := range []func(context.Context, operation, int) (figures, error){c.sett, c.other} {
		if _, err := measure(ctx, put, 64); err != nil {
			return err
		}
	}
	fmt.Printf("%-18s %7s  %-5s %9s %10s %10s %10s %7s\n", "operation", "clients", "", "ops/s", "p50", "p99", "cpu/op", "errors")
	for _, clients := range c.clients {
		for _, op := range []operation{put, getLinearizable} {
			if err := c.compare(ctx, op, clients); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c comparison) compare(ctx context.Context, op operation, clients int) error {
	var ours, theirs []figures
	for range c.rounds {
		a, err := c.sett(ctx, op, clients)
		if err != nil {
			return err
		}
		b, err := c.other(ctx, op, clients)
		if err != nil {
			return err
		}
		ours, theirs = append(ours, a), append(theirs, b)
	}
	for _, side := range []struct {
		name   string
		rounds []figures
	}{{"sett", ours}, {"etcd", theirs}} {
		failed := 0
		for _, f := range side.rounds {
			failed += f.Errors
		}
		fmt.Printf("%-18s %7d  %-5s %9.0f %10s %10s %10s %7d\n", op.name, clients, side.name,
			median(side.rounds, func(f figures) float64 { return f.PerSecond }),
			time.Duration(median(side.rounds, func(f figures) float64 { return float64(f.P50) })).Round(time.Microsecond),
			time.Duration(median(side.rounds, func(f figures) float64 { return float64(f.P99) })).Round(time.Microsecond),
			time.Duration(median(side.rounds, func(f figures) float64 { return float64(f.CPU) })).Round(time.Microsecond), failed)
	}
	fmt.Printf("%26s  ratio %9s %10s %10s %10s\n\n", "",
		ratios(ours, theirs, func(f figures) float64 { return f.PerSecond }),
		ratios(ours, theirs, func(f figures) float64 { return float64(f.P50) }),
		ratios(ours, theirs, func(f figures) float64 { return float64(f.P99) }),
		ratios(ours, theirs, func(f figures) float64 { return float64(f.CPU) }))
	return nil
}

func median(rounds []figures, of func(figures) float64) float64 {
	values := make([]float64, len(rounds))
	for i, f := range rounds {
		values[i] = of(f)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// ratios is ours by theirs: the median of the rounds.
func ratios(ours, theirs []figures, of func(figures) float64) string {
	values := make([]float64, len(ours))
	for i := range ours {
		values[i] = of(ours[i]) / of(theirs[i])
	}
	slices.Sort(values)
	return fmt.Sprintf("%.2f", values[len(values)/2])
}

// sett is one measurement of Sett.
func (c comparison) sett(ctx context.Context, op operation, clients int) (figures, error) {
	before := cpuTime(c.pids)
	r := measurement{op: op, urls: c.urls, clients: clients, options: c.options}.run(ctx)
	f := figures{PerSecond: r.perSecond(), P50: r.quantile(0.5), P99: r.quantile(0.99), Errors: r.errors}
	f.CPU = (cpuTime(c.pids) - before) / time.Duration(max(1, len(r.latencies)))
	if len(r.latencies) == 0 {
		return f, errors.Join(ctx.Err(), fmt.Errorf("sett, %s: no request succeeded, %d failed", op.name, r.errors))
	}
	return f, ctx.Err()
}

// other is one measurement of etcd.
func (c comparison) other(ctx context.Context, op operation, clients int) (figures, error) {
	kind := "put"
	if op == getLinearizable {
		kind = "get"
	}
	before := cpuTime(c.etcd.pids())
	f, err := c.etcd.load(ctx, "-op", kind, "-clients", strconv.Itoa(clients), "-duration", c.duration.String(),
		"-value-size", strconv.Itoa(c.valueBytes), "-keys", strconv.Itoa(c.keys))
	if err == nil {
		f.CPU = time.Duration(float64(cpuTime(c.etcd.pids())-before) / (f.PerSecond * c.duration.Seconds()))
	}
	return f, err
}

// cpuTime is the processor time that the processes took so far; 0 where there is no
// /proc.
func cpuTime(pids []int) time.Duration {
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	var sum time.Duration
	for _, pid := range pids {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		// The name, in parentheses, may have spaces; user and system time are the 14th
		// and 15th field.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, i := range []int{11, 12} {
			if n, err := strconv.Atoi(fields[i]); err == nil {
				sum += time.Duration(n) * tick
			}
		}
	}
	return sum
}

// etcdCluster is three members of etcd, each a process of its own.
type etcdCluster struct {
	path    string
	data    string
	members []*exec.Cmd
	clients []string // addresses
}

func startEtcd(path string) (*etcdCluster, error) {
	data, err := os.MkdirTemp("", "etcd-bench")
	if err != nil {
		return nil, err
	}
	const nodes = 3
	ports, err := blackbox.FreePorts(2 * nodes)
	if err != nil {
		return nil, err
	}
	address := func(i int) string { return "127.0.0.1:" + strconv.Itoa(ports[i]) }
	e := &etcdCluster{path: path, data: data}
	var all []string
	for i := range nodes {
		all = append(all, fmt.Sprintf("n%d=http://%s", i, address(nodes+i)))
		e.clients = append(e.clients, address(i))
	}
	for i := range nodes {
		name := "n" + strconv.Itoa(i)
		cmd := exec.Command(path, "node", "-name", name, "-data-dir", filepath.Join(data, name), "-initial-cluster", strings.Join(all, ","),
			"-client", "http://"+address(i), "-peer", "http://"+address(nodes+i))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for this program
		if err := cmd.Start(); err != nil {
			return nil, errors.Join(fmt.Errorf("start %s (make bench-etcd builds it): %w", path, err), e.stop())
		}
		e.members = append(e.members, cmd)
	}
	return e, nil
}

func (e *etcdCluster) load(ctx context.Context, args ...string) (figures, error) {
	cmd := exec.CommandContext(ctx, e.path, append([]string{"load", "-endpoints", strings.Join(e.clients, ",")}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return figures{}, errors.Join(ctx.Err(), fmt.Errorf("load on etcd: %w", err))
	}
	var f figures
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&f); err != nil {
		return figures{}, fmt.Errorf("read what the load on etcd measured: %w", err)
	}
	return f, nil
}

func (e *etcdCluster) pids() []int {
	var pids []int
	for _, m := range e.members {
		pids = append(pids, m.Process.Pid)
	}
	return pids
}

// stop kills the members: nobody needs what they hold.
func (e *etcdCluster) stop() error {
	for _, m := range e.members {
		_ = m.Process.Kill() // it may have ended by itself
		_ = m.Wait()         // it says that it was killed
	}
	return os.RemoveAll(e.data)
}
