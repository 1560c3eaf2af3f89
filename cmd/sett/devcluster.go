package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/settkv/sett/client"
)

// devOptions is what sett dev was asked for.
type devOptions struct {
	nodes      int
	nodesGiven bool
	dir        string // "" is a temporary folder
	httpBase   int
	program    string
	environ    []string
	out        io.Writer
	signals    <-chan os.Signal
}

const (
	// devPoll is how often the nodes are looked at.
	devPoll = 200 * time.Millisecond
	// devPatience is how long nothing may happen at the start before the causes are told.
	devPatience = 10 * time.Second
	// devStopTimeout is how long the nodes get to stop before they are killed.
	devStopTimeout = 30 * time.Second
)

// devCluster is a running cluster of processes. One goroutine owns it.
type devCluster struct {
	out     io.Writer
	signals <-chan os.Signal
	procs   []*devProc
	exits   chan *devProc // each process, once, when it has ended
	running int
}

// devProc is one node's process.
type devProc struct {
	devNode
	cmd   *exec.Cmd
	log   string
	err   error // how it ended
	ended bool
	up    bool // has answered
	ready bool
	why   string // why it is not ready
}

// runDev runs a cluster until a signal.
func runDev(ctx context.Context, o devOptions) (err error) {
	// Invariant: children die with this process. Linux sends their death signal when
	// the thread that started them ends, so that thread must last.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dir, temporary := o.dir, o.dir == ""
	if temporary {
		if dir, err = os.MkdirTemp("", "sett-dev-"); err != nil {
			return fmt.Errorf("make a temporary folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	lock, err := takeDevFolder(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	plan, err := planDev(dir, o)
	if err != nil {
		return err
	}
	kept := "kept at exit"
	if temporary {
		kept = "removed at exit"
	}
	fmt.Fprintf(o.out, "Starting a cluster of %s in %s (%s)\n", count(len(plan.Nodes), "node"), dir, kept)

	c := &devCluster{out: o.out, signals: o.signals, exits: make(chan *devProc, len(plan.Nodes))}
	defer func() {
		// What went wrong first is what counts.
		if stopErr := c.stop(); err == nil {
			err = stopErr
		}
	}()
	for _, n := range plan.Nodes {
		if err := c.start(n, plan, dir, o); err != nil {
			return err
		}
	}
	formed, err := c.form(ctx)
	if err != nil || !formed {
		return err
	}
	c.welcome()
	return c.watch(ctx)
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

// start starts the process of n.
func (c *devCluster) start(n devNode, plan devPlan, dir string, o devOptions) error {
	p := &devProc{devNode: n, log: filepath.Join(dir, n.ID+".log")}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", n.ID, err)
	}
	defer log.Close() // the child has its own
	gossip := make([]string, 0, len(plan.Nodes))
	for _, m := range plan.Nodes {
		gossip = append(gossip, m.Gossip)
	}
	p.cmd = exec.Command(o.program, "serve",
		"--id", n.ID, "--data-dir", filepath.Join(dir, n.ID),
		"--http-addr", n.HTTP, "--raft-addr", n.Raft, "--gossip-addr", n.Gossip,
		"--bootstrap-expect", strconv.Itoa(len(plan.Nodes)), "--join", strings.Join(gossip, ","),
		"--cluster-name", "sett-dev", "--log-format", "text")
	// The user's own settings are for other nodes.
	for _, kv := range o.environ {
		if !strings.HasPrefix(kv, "SETT_") {
			p.cmd.Env = append(p.cmd.Env, kv)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = childAttributes()
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", n.ID, err)
	}
	c.procs = append(c.procs, p)
	c.running++
	fmt.Fprintf(c.out, "  %s  starting as process %d, log in %s\n", n.ID, p.cmd.Process.Pid, p.log)
	go func() {
		p.err = p.cmd.Wait()
		c.exits <- p
	}()
	return nil
}

// form waits until every node is ready. It returns false if it was told to stop.
func (c *devCluster) form(ctx context.Context) (bool, error) {
	fmt.Fprintln(c.out, "Waiting for the nodes to find each other and to elect a leader")
	tick := time.NewTicker(devPoll)
	defer tick.Stop()
	told := time.Now()
	for {
		select {
		case <-ctx.Done():
			return false, nil
		case <-c.signals:
			return false, nil
		case p := <-c.exits:
			c.ended(p)
			return false, fmt.Errorf("%s stopped while starting (%s)", p.ID, p.end())
		case <-tick.C:
		}
		progress, all := c.poll(ctx)
		if all {
			return true, nil
		}
		if progress {
			told = time.Now()
		} else if time.Since(told) > devPatience {
			told = time.Now()
			for _, p := range c.procs {
				if !p.ready {
					fmt.Fprintf(c.out, "  %s  still waiting: %s\n", p.ID, p.why)
				}
			}
		}
	}
}

// poll asks the nodes that are not ready yet, and tells what is new.
func (c *devCluster) poll(ctx context.Context) (progress, all bool) {
	all = true
	for _, p := range c.procs {
		if p.ready {
			continue
		}
		cl, err := client.New(client.Config{Endpoints: []string{p.url()}, Timeout: time.Second})
		if err != nil {
			p.why, all = err.Error(), false
			continue
		}
		if err = cl.Ready(ctx); err == nil {
			p.up, p.ready, progress = true, true, true
			fmt.Fprintf(c.out, "  %s  ready\n", p.ID)
		} else {
			p.why, all = errorLine(err), false
			if !p.up && cl.Live(ctx) == nil {
				p.up, progress = true, true
				fmt.Fprintf(c.out, "  %s  listening on %s\n", p.ID, p.url())
			}
		}
		cl.Close()
	}
	return progress, all
}

// leader returns the id of the leader that a running node knows, "" if none does.
func (c *devCluster) leader(ctx context.Context) string {
	for _, p := range c.procs {
		if p.ended {
			continue
		}
		cl, err := client.New(client.Config{Endpoints: []string{p.url()}, Timeout: time.Second})
		if err != nil {
			continue
		}
		s, err := cl.Status(ctx)
		cl.Close()
		if err == nil && s.Leader != "" {
			return s.Leader
		}
	}
	return ""
}

func (c *devCluster) welcome() {
	urls := make([]string, 0, len(c.procs))
	for _, p := range c.procs {
		urls = append(urls, p.url())
	}
	first, last := urls[0], urls[len(urls)-1]
	fmt.Fprintf(c.out, "Leader is %s. The cluster takes reads and writes on every node:\n\n", c.leader(context.Background()))
	for _, p := range c.procs {
		fmt.Fprintf(c.out, "  %s  %s\n", p.ID, p.url())
	}
	fmt.Fprintf(c.out, `
Try it:

  curl -X PUT --data-binary 'hello' %s/v1/kv/greeting
  curl %s/v1/kv/greeting
  sett status --endpoints %s

Ctrl-C stops all of it.
`, first, last, strings.Join(urls, ","))
}

// watch tells what happens to the cluster, until a signal or until no node is left.
func (c *devCluster) watch(ctx context.Context) error {
	tick := time.NewTicker(5 * devPoll)
	defer tick.Stop()
	leader := c.leader(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.signals:
			return nil
		case p := <-c.exits:
			c.ended(p)
			fmt.Fprintf(c.out, "%s stopped (%s); %d of %d nodes left\n", p.ID, p.end(), c.running, len(c.procs))
			if c.running == 0 {
				return errors.New("no node is left; see their logs")
			}
		case <-tick.C:
			if now := c.leader(ctx); now != "" && now != leader {
				leader = now
				fmt.Fprintf(c.out, "Leader is %s\n", leader)
			}
		}
	}
}

func (c *devCluster) ended(p *devProc) {
	p.ended = true
	c.running--
}

// stop stops every node that still runs: in order, then by force. A second signal
// is force at once.
func (c *devCluster) stop() error {
	if c.running == 0 {
		return nil
	}
	fmt.Fprintf(c.out, "\nStopping %s\n", count(c.running, "node"))
	c.signal(syscall.SIGTERM)
	timer := time.NewTimer(devStopTimeout)
	defer timer.Stop()
	var failed error
	for c.running > 0 {
		select {
		case p := <-c.exits:
			c.ended(p)
			fmt.Fprintf(c.out, "  %s  stopped\n", p.ID)
			if p.err != nil && !p.terminated() {
				failed = errors.Join(failed, fmt.Errorf("%s did not stop in order (%s)", p.ID, p.end()))
			}
		case <-c.signals:
			c.signal(syscall.SIGKILL)
		case <-timer.C:
			fmt.Fprintln(c.out, "Killing what did not stop in time")
			c.signal(syscall.SIGKILL)
		}
	}
	return failed
}

func (c *devCluster) signal(s os.Signal) {
	for _, p := range c.procs {
		if !p.ended {
			// It may have ended meanwhile; its exit is on its way.
			_ = p.cmd.Process.Signal(s)
		}
	}
}

// terminated says whether SIGTERM ended the process before it could stop in order,
// as it does right after the start.
func (p *devProc) terminated() bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGTERM
}

// end tells how the process ended and, if it ended by itself, why.
func (p *devProc) end() string {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) && exit.ExitCode() < 0 {
		return exit.Error() + ", log in " + p.log
	}
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return how + ", " + lastLine(p.log) + ", log in " + p.log
}

// lastLine returns the end of a log: most likely the reason why its process ended.
func lastLine(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const tail = 4 << 10
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return "it logged nothing"
	}
	return string(data[bytes.LastIndexByte(data, '\n')+1:])
}
