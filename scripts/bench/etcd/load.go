package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

type load struct {
	endpoints  []string
	op         string
	clients    int
	duration   time.Duration
	valueBytes int
	keys       int
}

// report is what load prints; ../compare.go reads it.
type report struct {
	PerSecond float64       `json:"per_second"`
	P50       time.Duration `json:"p50_ns"`
	P99       time.Duration `json:"p99_ns"`
	Errors    int           `json:"errors"`
}

func runLoad(ctx context.Context, args []string) error {
	var l load
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	endpoints := flags.String("endpoints", "", "addresses of all members, comma separated")
	flags.StringVar(&l.op, "op", "put", "put or get (linearizable)")
	flags.IntVar(&l.clients, "clients", 1, "how many clients at once")
	flags.DurationVar(&l.duration, "duration", 5*time.Second, "how long")
	flags.IntVar(&l.valueBytes, "value-size", 256, "bytes of a value")
	flags.IntVar(&l.keys, "keys", 10_000, "keys to choose from")
	if err := flags.Parse(args); err != nil {
		return err
	}
	l.endpoints = strings.Split(*endpoints, ",")
	r, err := l.run(ctx)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// run gives each client a connection of its own to one member, and lets all of them
// work for the duration.
func (l load) run(ctx context.Context) (report, error) {
	conns := make([]*clientv3.Client, l.clients)
	for i := range conns {
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{l.endpoints[i%len(l.endpoints)]}, DialTimeout: 10 * time.Second})
		if err != nil {
			return report{}, err
		}
		defer func() { _ = c.Close() }() // nothing is pending any more
		conns[i] = c
		// Connects, and waits until the member is part of a cluster with a leader.
		if err := ready(ctx, c); err != nil {
			return report{}, err
		}
	}
	latencies := make([][]time.Duration, l.clients)
	errs := make([]int, l.clients)
	var wg sync.WaitGroup
	began := time.Now()
	end := began.Add(l.duration)
	for i, c := range conns {
		wg.Go(func() { latencies[i], errs[i] = l.client(ctx, c, work{number: i, end: end}) })
	}
	wg.Wait()
	took := time.Since(began)
	var r report
	var all []time.Duration
	for i := range conns {
		all = append(all, latencies[i]...)
		r.Errors += errs[i]
	}
	if len(all) == 0 {
		return r, fmt.Errorf("no request succeeded, %d failed", r.Errors)
	}
	slices.Sort(all)
	r.PerSecond = float64(len(all)) / took.Seconds()
	r.P50, r.P99 = all[len(all)/2], all[len(all)*99/100]
	return r, nil
}

func ready(ctx context.Context, c *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := c.Get(ctx, "bench")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("etcd does not answer: %w", err)
		}
	}
}

// work is one client's part.
type work struct {
	number int
	end    time.Time // no request begins after it
}

// client makes one request after the other. The last one is waited for: etcd's client
// logs each that is cut off.
func (l load) client(ctx context.Context, c *clientv3.Client, w work) (latencies []time.Duration, errs int) {
	rng := rand.New(rand.NewPCG(uint64(w.number), 1))
	value := make([]byte, l.valueBytes)
	for ctx.Err() == nil && time.Now().Before(w.end) {
		for i := range value {
			value[i] = byte('a' + rng.IntN(26))
		}
		key := fmt.Sprintf("bench/%08d", rng.IntN(l.keys))
		began := time.Now()
		var err error
		if l.op == "put" {
			_, err = c.Put(ctx, key, string(value))
		} else {
			_, err = c.Get(ctx, key) // linearizable by default
		}
		took := time.Since(began)
		switch {
		case ctx.Err() != nil:
			// Cut off by Ctrl-C.
		case err != nil:
			errs++
		default:
			latencies = append(latencies, took)
		}
	}
	return latencies, errs
}
