// Command smoke is the hands and eyes of scripts/compose-smoke.sh: it needs no
// curl, no jq, and talks to the nodes as any HTTP client would.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/settkv/sett/internal/blackbox"
)

const usage = `usage: smoke [flags] COMMAND URL…
  ports            print -n free ports
  ready            wait until every node is ready
  leader           wait for a leader other than -not and print its id
  voters           wait until the cluster is exactly -n alive voters
  everywhere       write through each node, read through all the others
  load             write until SIGTERM, recording every outcome in -file
  progress         wait until -file has -n more acknowledged writes
  verify           hold every node to -file, and all nodes to one digest
`

type options struct {
	file, not string
	n, rate   int
	timeout   time.Duration
	urls      []string
}

func main() {
	var o options
	flag.StringVar(&o.file, "file", "", "the ledger's file")
	flag.StringVar(&o.not, "not", "", "id of the leader that is gone")
	flag.IntVar(&o.n, "n", 0, "how many")
	flag.IntVar(&o.rate, "rate", 200, "operations per second")
	flag.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	o.urls = flag.Args()[1:]
	if err := run(flag.Arg(0), o); err != nil {
		fmt.Fprintf(os.Stderr, "smoke %s: %v\n", flag.Arg(0), err)
		os.Exit(1)
	}
}

func run(command string, o options) error {
	ctx, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	switch command {
	case "ports":
		ports, err := blackbox.FreePorts(o.n)
		for _, p := range ports {
			fmt.Println(p)
		}
		return err
	case "ready":
		return blackbox.AwaitReady(ctx, o.urls...)
	case "leader":
		leader, err := blackbox.AwaitLeader(ctx, o.urls, o.not)
		if err == nil {
			fmt.Println(leader)
		}
		return err
	case "voters":
		_, err := blackbox.AwaitVoters(ctx, o.urls, o.n)
		return err
	case "everywhere":
		return everywhere(ctx, o)
	case "load":
		return load(o)
	case "progress":
		return progress(ctx, o)
	case "verify":
		return verify(ctx, o)
	}
	return fmt.Errorf("there is no such command\n%s", usage)
}

// everywhere writes one key through each node and reads it back through each.
func everywhere(ctx context.Context, o options) error {
	for i, through := range o.urls {
		key := fmt.Sprintf("/v1/kv/everywhere/%d", i)
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, through+key, strings.NewReader(through))
		if err != nil {
			return fmt.Errorf("make request: %w", err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_ = resp.Body.Close() // the status says all
		if resp.StatusCode != http.StatusCreated {
			return fmt.Errorf("put through %s: %s", through, resp.Status)
		}
		for _, at := range o.urls {
			got, err := blackbox.Fetch(ctx, http.MethodGet, at+key)
			if err != nil {
				return err
			}
			if !bytes.Equal(got, []byte(through)) {
				return fmt.Errorf("%s: %q, written through %s", at+key, got, through)
			}
		}
	}
	return nil
}

func load(o options) error {
	f, err := os.Create(o.file)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	ledger := blackbox.NewLedger(f)
	blackbox.Load{Endpoints: o.urls, Ledger: ledger, Prefix: "smoke", Rate: o.rate}.Run(ctx)
	fmt.Printf("load: %s\n", ledger.Counts())
	return f.Close()
}

func progress(ctx context.Context, o options) error {
	start, err := ackedLines(o.file)
	if err != nil {
		return err
	}
	return blackbox.Await(ctx, fmt.Sprintf("%d more acknowledged writes", o.n), func(context.Context) error {
		now, err := ackedLines(o.file)
		if err == nil && now < start+o.n {
			err = fmt.Errorf("there are %d", now-start)
		}
		return err
	})
}

func ackedLines(file string) (int, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer func() { _ = f.Close() }() // only read
	n := 0
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "A ") {
			n++
		}
	}
	return n, sc.Err()
}

func verify(ctx context.Context, o options) error {
	f, err := os.Open(o.file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // only read
	ledger, err := blackbox.ReadLedger(f)
	if err != nil {
		return err
	}
	bad := ledger.Violations()
	for _, url := range o.urls {
		lines, err := blackbox.Verify(ctx, url, ledger)
		if err != nil {
			return err
		}
		bad = append(bad, lines...)
	}
	if len(bad) > 0 {
		return errors.New("promises were broken:\n  " + strings.Join(bad, "\n  "))
	}
	s, err := blackbox.AwaitEqual(ctx, o.urls)
	if err != nil {
		return err
	}
	fmt.Printf("verify: %d keys are as they must be, through each of %d nodes; digest %.16s… at revision %d on all\n",
		len(ledger.Keys()), len(o.urls), s.Digest.Hash, s.Digest.Revision)
	return nil
}
