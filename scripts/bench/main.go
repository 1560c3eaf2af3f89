// Command bench measures a cluster of real processes on this machine: it starts
// `sett dev`, drives it over plain HTTP with closed-loop clients, and prints
// throughput, latencies and memory. `make bench` runs it. With --etcd it measures a
// cluster of etcd in turn with Sett's and prints the ratios; `make bench-etcd`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

type options struct {
	sett       string
	endpoints  string
	duration   time.Duration
	valueBytes int
	keys       int
	clients    []int
	etcd       string
	rounds     int

	restartKeys int
	dataKeys    int
	steps       string
	flat        int
	idle        int
	watchers    int
}

func main() {
	var o options
	var clients string
	flag.StringVar(&o.sett, "sett", "bin/sett", "the binary to measure")
	flag.StringVar(&o.endpoints, "endpoints", "", "measure a cluster that runs already (comma separated URLs) instead of starting one")
	flag.DurationVar(&o.duration, "duration", 10*time.Second, "length of each measurement")
	flag.IntVar(&o.valueBytes, "value-size", 256, "bytes of a value")
	flag.IntVar(&o.keys, "keys", 10_000, "keys to choose from")
	flag.StringVar(&clients, "clients", "1,64", "how many clients at once, one measurement each")
	flag.StringVar(&o.etcd, "etcd", "", "compare with etcd: the binary made of ./etcd")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each side is measured in a comparison")
	flag.IntVar(&o.restartKeys, "restart", 0, "measure instead how soon nodes with this many keys are ready again after kill -9")
	flag.IntVar(&o.dataKeys, "data", 0, "measure instead what moves much data: loads of this many keys, streams, pages, watches, expiry")
	flag.StringVar(&o.steps, "steps", "load,stream,pages,watched,expiry", "with -data: which of these")
	flag.IntVar(&o.flat, "flat", 0, "measure instead memory while this many gigabytes are streamed in and out")
	flag.IntVar(&o.idle, "idle", 0, "measure instead what this many idle watchers take")
	flag.IntVar(&o.watchers, "watchers", 1000, "with -data: how many watch while others write")
	flag.Parse()
	for _, text := range strings.Split(clients, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "bench: --clients %q: want positive numbers\n", clients)
			os.Exit(2)
		}
		o.clients = append(o.clients, n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.restartKeys > 0 {
		return measureRestart(ctx, o)
	}
	soon, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	urls := strings.Split(o.endpoints, ",")
	var pids []int
	if o.endpoints == "" {
		dev, devURLs, startErr := startDev(o.sett)
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, dev.stop()) }()
		urls = devURLs
		if err := blackbox.AwaitReady(soon, urls...); err != nil {
			return err
		}
		pids = childrenOf(dev.cmd.Process.Pid)
		printMemory("empty store", pids)
	}
	if _, err := blackbox.AwaitLeader(soon, urls, ""); err != nil {
		return err
	}
	if o.etcd != "" {
		etcd, err := startEtcd(o.etcd)
		if err != nil {
			return err
		}
		defer func() { _ = etcd.stop() }() // a rest in the folder for temporary files at worst
		if err := (comparison{options: o, urls: urls, pids: pids, etcd: etcd}).run(ctx); err != nil {
			return err
		}
		printMemory("sett after the load", pids)
		printMemory("etcd after the load", etcd.pids())
		return nil
	}
	switch {
	case o.dataKeys > 0:
		return measureData(ctx, o, urls, pids)
	case o.flat > 0:
		return measureFlat(ctx, o, urls, pids)
	case o.idle > 0:
		return measureIdle(ctx, o, urls, pids)
	}
	fmt.Printf("%d nodes, values of %d bytes, %v each, closed loop, clients spread over all nodes\n\n", len(urls), o.valueBytes, o.duration)
	fmt.Printf("%-22s %8s %10s %9s %9s %9s %9s %8s\n", "operation", "clients", "ops/s", "p50", "p99", "p99.9", "max", "errors")
	for _, clients := range o.clients {
		for _, op := range []operation{put, getLinearizable, getLeader, getStale} {
			m := measurement{op: op, urls: urls, clients: clients, options: o}
			r := m.run(ctx)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			fmt.Printf("%-22s %8d %10.0f %9s %9s %9s %9s %8d\n", op.name, clients, r.perSecond(),
				r.quantile(0.5), r.quantile(0.99), r.quantile(0.999), r.quantile(1), r.errors)
		}
	}
	fmt.Println()
	printMemory("after the load", pids)
	return nil
}

// dev is a running `sett dev`.
type dev struct {
	cmd  *exec.Cmd
	data string
}

func startDev(path string) (*dev, []string, error) {
	data, err := os.MkdirTemp("", "sett-bench")
	if err != nil {
		return nil, nil, err
	}
	const nodes = 3
	base, err := consecutivePorts(nodes)
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(path, "dev", "--nodes", strconv.Itoa(nodes), "--data-dir", data, "--http-base", strconv.Itoa(base))
	cmd.Stderr = os.Stderr
	// Ctrl-C is for this program, which then ends the cluster.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start %s (make build makes it): %w", path, err)
	}
	var urls []string
	for i := range nodes {
		urls = append(urls, "http://127.0.0.1:"+strconv.Itoa(base+i))
	}
	return &dev{cmd: cmd, data: data}, urls, nil
}

func (d *dev) stop() error {
	err := d.cmd.Process.Signal(os.Interrupt)
	if waitErr := d.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("sett dev ended: %w", waitErr))
	}
	return errors.Join(err, os.RemoveAll(d.data))
}

// consecutivePorts finds the first of n free ports in a row.
func consecutivePorts(n int) (int, error) {
	for range 200 {
		ports, err := blackbox.FreePorts(1)
		if err != nil {
			return 0, err
		}
		free := 1
		for free < n && blackbox.PortFree(ports[0]+free) {
			free++
		}
		if free == n {
			return ports[0], nil
		}
	}
	return 0, fmt.Errorf("found no %d free ports in a row", n)
}

// childrenOf lists the processes that pid started; none where there is no /proc.
func childrenOf(pid int) []int {
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, t := range tasks {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(children)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

func printMemory(when string, pids []int) {
	var parts []string
	for _, pid := range pids {
		if kb := memoryOf(pid, "VmRSS:"); kb > 0 {
			parts = append(parts, fmt.Sprintf("%d MiB", kb>>10))
		}
	}
	if len(parts) > 0 {
		fmt.Printf("resident memory, %s: %s\n", when, strings.Join(parts, ", "))
	}
}
