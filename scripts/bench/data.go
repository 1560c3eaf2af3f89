package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// measureData measures the calls that move much data: a bulk load of o.dataKeys keys, a
// stream of all of them, pages of a thousand, writes beside watchers, and writes while
// all keys of a load expire at once.
func measureData(ctx context.Context, o options, urls []string, pids []int) error {
	steps := map[string]func(context.Context, options, []string) error{
		"load": loadBulk, "stream": streamAll, "pages": readPages, "watched": writeWatched, "expiry": writeExpiring,
	}
	for _, name := range strings.Split(o.steps, ",") {
		step := steps[name]
		if step == nil {
			return fmt.Errorf("--steps: there is no step %q", name)
		}
		if err := step(ctx, o, urls); err != nil {
			return err
		}
		printMemory("then", pids)
	}
	return nil
}

// lines are those of a bulk load: keys with a prefix, each with more members.
type lines struct {
	prefix, more     string
	keys, valueBytes int
}

func (l lines) write(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<20)
	value := strings.Repeat("0123456789abcdef", l.valueBytes/16+1)[:l.valueBytes]
	for i := range l.keys {
		if _, err := fmt.Fprintf(b, `{"key":"%s%09d","value":"%s"%s}`+"\n", l.prefix, i, value, l.more); err != nil {
			return err
		}
	}
	return b.Flush()
}

func bulk(ctx context.Context, url string, l lines) (time.Duration, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(l.write(w)) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/kv", r)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	began := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("bulk load: %d %s", resp.StatusCode, body)
	}
	return time.Since(began), err
}

func loadBulk(ctx context.Context, o options, urls []string) error {
	for i, url := range urls {
		took, err := bulk(ctx, url, lines{prefix: fmt.Sprintf("load/%d/", i), keys: o.dataKeys, valueBytes: o.valueBytes})
		if err != nil {
			return err
		}
		fmt.Printf("bulk load through node %d: %d keys in %v, %.0f keys/s\n", i+1, o.dataKeys, took.Round(time.Millisecond), float64(o.dataKeys)/took.Seconds())
	}
	return nil
}

func streamAll(ctx context.Context, _ options, urls []string) error {
	for i, url := range urls {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/v1/kv", http.NoBody)
		if err != nil {
			return err
		}
		req.Header.Set("Accept", "application/x-ndjson")
		began := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		n, tail, err := drain(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		if !bytes.Contains(tail, []byte(`"end":true`)) {
			return fmt.Errorf("the stream ended with %q", tail)
		}
		took := time.Since(began)
		fmt.Printf("stream from node %d: %d MB in %v, %.0f MB/s\n", i+1, n/1e6, took.Round(time.Millisecond), float64(n)/1e6/took.Seconds())
	}
	return nil
}

// drain reads to the end and keeps the last bytes.
func drain(r io.Reader) (n int64, tail []byte, err error) {
	buf := make([]byte, 1<<20)
	for {
		k, err := r.Read(buf)
		n += int64(k)
		if k > 0 {
			tail = append(tail, buf[max(0, k-100):k]...)
			tail = tail[max(0, len(tail)-100):]
		}
		if errors.Is(err, io.EOF) {
			return n, tail, nil
		}
		if err != nil {
			return n, tail, err
		}
	}
}

func readPages(ctx context.Context, o options, urls []string) error {
	var took []time.Duration
	for i := range 200 {
		from := fmt.Sprintf("load/%d/%09d", i%len(urls), (i*7919)%max(1, o.dataKeys-1000))
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[i%len(urls)]+"/v1/kv?start="+from+"&limit=1000", http.NoBody)
		if err != nil {
			return err
		}
		began := time.Now()
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		n, _, err := drain(resp.Body)
		_ = resp.Body.Close()
		if err != nil || n < 1000 {
			return fmt.Errorf("a page of %d bytes: %w", n, err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	fmt.Printf("pages of 1000 keys: p50 %v, p99 %v\n", took[len(took)/2].Round(10*time.Microsecond), took[len(took)*99/100].Round(10*time.Microsecond))
	return nil
}

// writeWatched measures puts with and without o.watchers watchers of the keys that are
// written, in turn.
func writeWatched(ctx context.Context, o options, urls []string) error {
	var ratios []float64
	for range o.rounds {
		free := putsPerSecond(ctx, o, urls)
		wctx, stop := context.WithCancel(ctx)
		told, wait, err := watchAll(wctx, o.watchers, urls, "")
		if err != nil {
			stop()
			return err
		}
		before := told.Load()
		watched := putsPerSecond(ctx, o, urls)
		got := told.Load() - before
		stop()
		wait()
		ratios = append(ratios, watched/free)
		fmt.Printf("puts by %d clients: %.0f/s alone, %.0f/s beside %d watchers (which got %d MB): %.2f\n",
			o.clients[len(o.clients)-1], free, watched, o.watchers, got/1e6, watched/free)
	}
	slices.Sort(ratios)
	fmt.Printf("writes beside watchers: %.2f of those without (median of %d)\n", ratios[len(ratios)/2], len(ratios))
	return nil
}

func putsPerSecond(ctx context.Context, o options, urls []string) float64 {
	m := measurement{op: put, urls: urls, clients: o.clients[len(o.clients)-1], options: o}
	return m.run(ctx).perSecond()
}

// watchAll opens n watches of what query says and reads them; wait returns when they have ended.
func watchAll(ctx context.Context, n int, urls []string, query string) (told *atomic.Int64, wait func(), err error) {
	told = new(atomic.Int64)
	var wg sync.WaitGroup
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	for i := range n {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[i%len(urls)]+"/v1/watch"+query, http.NoBody)
		if err != nil {
			return nil, nil, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, nil, err
		}
		if resp.StatusCode != http.StatusOK {
			return nil, nil, fmt.Errorf("watch: %s", resp.Status)
		}
		wg.Go(func() {
			defer func() { _ = resp.Body.Close() }()
			buf := make([]byte, 64<<10)
			for {
				k, err := resp.Body.Read(buf)
				told.Add(int64(k))
				if err != nil {
					return
				}
			}
		})
	}
	return told, wg.Wait, nil
}

// writeExpiring measures puts while as many keys as were loaded expire at once.
func writeExpiring(ctx context.Context, o options, urls []string) error {
	m := measurement{op: put, urls: urls, clients: o.clients[len(o.clients)-1], options: o}
	ttl := o.duration + time.Minute + time.Duration(o.dataKeys/10_000)*time.Second
	at := time.Now().Add(ttl)
	due := lines{"due/", fmt.Sprintf(`,"expires_at":%q`, at.UTC().Format(time.RFC3339Nano)), o.dataKeys, o.valueBytes}
	if _, err := bulk(ctx, urls[0], due); err != nil {
		return err
	}
	// Measured on the same data, once what the load left to do is done.
	settled := time.NewTimer(time.Until(at) - o.duration - 5*time.Second)
	defer settled.Stop()
	select {
	case <-settled.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	free := m.run(ctx)
	timer := time.NewTimer(time.Until(at.Add(500 * time.Millisecond)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	busy := m.run(ctx)
	fmt.Printf("puts by %d clients: %.0f/s, p50 %v, p99 %v; while %d keys expire: %.0f/s, p50 %v, p99 %v (ratio of p99 %.2f)\n",
		m.clients, free.perSecond(), free.quantile(0.5), free.quantile(0.99), o.dataKeys,
		busy.perSecond(), busy.quantile(0.5), busy.quantile(0.99), float64(busy.quantile(0.99))/float64(free.quantile(0.99)))
	return nil
}
