package blackbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"
)

// maxReported bounds how many discrepancies of one node are listed.
const maxReported = 20

// Verify reads every key of the ledger through one node, linearizably, and returns
// what differs from the ledger (at most 20 lines, then a count). Reads that decide
// nothing are repeated until ctx ends, which is then the error. No load may run.
func Verify(ctx context.Context, endpoint string, l *Ledger) ([]string, error) {
	keys := l.Keys()
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] })
	work := make(chan string)
	var (
		mu  sync.Mutex
		bad []string
		err error
		wg  sync.WaitGroup
	)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := newHTTPClient()
			defer c.CloseIdleConnections()
			for key := range work {
				seen, rerr := readDecided(ctx, c, endpoint, key)
				mu.Lock()
				if rerr != nil {
					err = rerr
					cancel()
				} else if line := l.Check(key, seen); line != "" {
					bad = append(bad, endpoint+": "+line)
				}
				mu.Unlock()
			}
		}()
	}
	for _, key := range keys {
		select {
		case work <- key:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if n := len(bad); n > maxReported {
		bad = append(bad[:maxReported], fmt.Sprintf("%s: and %d more", endpoint, n-maxReported))
	}
	return bad, err
}

func readDecided(ctx context.Context, c *http.Client, endpoint, key string) (Seen, error) {
	for {
		a, err := send(ctx, c, request{method: http.MethodGet, base: endpoint, key: key, timeout: 5 * time.Second})
		if seen, ok := a.seen(); err == nil && ok {
			return seen, nil
		}
		if werr := pause(ctx, 100*time.Millisecond); werr != nil {
			return Seen{}, fmt.Errorf("read %s through %s (last answer %d %q, %w)", key, endpoint, a.status, a.code, errOr(err, werr))
		}
	}
}

func errOr(err, otherwise error) error {
	if err != nil {
		return err
	}
	return otherwise
}

// pause waits for d, or less if ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Fill puts n keys of valueBytes each under prefix, many at a time and repeating
// what failed, so that a cluster has something to carry. The keys are not in any
// ledger.
func Fill(ctx context.Context, endpoints []string, prefix string, n, valueBytes int) error {
	numbers := make(chan int)
	errs := make(chan error, 1)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := newHTTPClient()
			defer c.CloseIdleConnections()
			for i := range numbers {
				if err := fillOne(ctx, c, endpoints[w%len(endpoints)], fmt.Sprintf("%s/%07d", prefix, i), valueBytes); err != nil {
					select {
					case errs <- err:
					default:
					}
				}
			}
		}()
	}
	for i := range n {
		select {
		case numbers <- i:
			continue
		case <-ctx.Done():
		}
		break
	}
	close(numbers)
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return ctx.Err()
	}
}

func fillOne(ctx context.Context, c *http.Client, endpoint, key string, valueBytes int) error {
	r := request{method: http.MethodPut, base: endpoint, key: key, body: value(key, 0, valueBytes), timeout: 5 * time.Second}
	for {
		a, err := send(ctx, c, r)
		if err == nil && (a.status == http.StatusCreated || a.status == http.StatusNoContent) {
			return nil
		}
		if err == nil && a.status >= 400 && a.status < 500 && a.status != http.StatusTooManyRequests {
			return fmt.Errorf("put %s through %s: %d %s", key, endpoint, a.status, a.body)
		}
		if werr := pause(ctx, 50*time.Millisecond); werr != nil {
			return fmt.Errorf("put %s through %s (last answer %d %q, %w)", key, endpoint, a.status, a.code, errOr(err, werr))
		}
	}
}
