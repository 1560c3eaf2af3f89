package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/config"
	"github.com/settkv/sett/kv"
)

// The forms of output. The default, "", is what reads best: a table, or for a value
// its bytes.
const (
	outputDefault = ""
	outputTable   = "table"
	outputJSON    = "json"
	outputRaw     = "raw"
)

// connection holds the flags of every client command.
type connection struct {
	app       *app
	endpoints []string
	timeout   string
	output    string
}

// connectionFlags gives cmd the flags of a client command; the environment gives
// their defaults.
func (a *app) connectionFlags(cmd *cobra.Command) *connection {
	c := &connection{app: a}
	endpoints := []string{client.DefaultEndpoint}
	if list := splitList(a.getenv("SETT_ENDPOINTS")); len(list) > 0 {
		endpoints = list
	}
	timeout := a.getenv("SETT_TIMEOUT")
	if timeout == "" {
		timeout = client.DefaultTimeout.String()
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&c.endpoints, "endpoints", endpoints, "URLs of nodes, comma separated (environment: SETT_ENDPOINTS)")
	fs.StringVar(&c.timeout, "timeout", timeout, "how long to try, retries included (environment: SETT_TIMEOUT)")
	fs.StringVar(&c.output, "output", a.getenv("SETT_OUTPUT"), "form of the answer: table, json or raw (environment: SETT_OUTPUT)")
	return c
}

func (a *app) getenv(name string) string {
	for _, kv := range a.environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

func splitList(text string) []string {
	var list []string
	for _, item := range strings.Split(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

// limit parses --timeout.
func (c *connection) limit() (time.Duration, error) {
	d, err := config.ParseDuration(c.timeout)
	if err == nil && d == 0 {
		err = errors.New("want more than 0")
	}
	if err != nil {
		return 0, usagef("bad value %q for --timeout (or SETT_TIMEOUT): %w", c.timeout, err)
	}
	return d, nil
}

// dial makes a client of the given endpoints, or of those of the flags if none.
func (c *connection) dial(endpoints ...string) (*client.Client, error) {
	limit, err := c.limit()
	if err != nil {
		return nil, err
	}
	if len(endpoints) == 0 {
		endpoints = slices.DeleteFunc(slices.Clone(c.endpoints), func(s string) bool { return s == "" })
	}
	if len(endpoints) == 0 {
		return nil, usagef("--endpoints names no endpoint")
	}
	cl, err := client.New(client.Config{Endpoints: endpoints, Timeout: limit})
	if err != nil {
		return nil, usagef("%w", err)
	}
	return cl, nil
}

// do calls fn with a client and with a context that ends at the timeout and at a
// signal.
func (c *connection) do(cmd *cobra.Command, fn func(context.Context, *client.Client) error) error {
	limit, err := c.limit()
	if err != nil {
		return err
	}
	return c.stream(cmd, func(ctx context.Context, cl *client.Client) error {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		return fn(ctx, cl)
	})
}

// stream is do for what may take any time: the timeout bounds each request's start.
func (c *connection) stream(cmd *cobra.Command, fn func(context.Context, *client.Client) error) error {
	if !slices.Contains([]string{outputDefault, outputTable, outputJSON, outputRaw}, c.output) {
		return usagef("bad value %q for --output (or SETT_OUTPUT): want table, json or raw", c.output)
	}
	cl, err := c.dial()
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	return fn(ctx, cl)
}

// onceFlag gives a write the flag for its idempotency key.
func onceFlag(cmd *cobra.Command, key *string) {
	cmd.Flags().Var((*onceKey)(key), "idempotency-key", "name of this write: sent again under it, it is answered as before and changes nothing (default a random one)")
}

// onceKey is the value of that flag. An empty one, say of a variable that is not set, would be a random key,
// and the write done again when it is sent again.
type onceKey string

func (k *onceKey) String() string { return string(*k) }
func (k *onceKey) Type() string   { return "string" }

func (k *onceKey) Set(v string) error {
	if v == "" || len(v) > kv.MaxOnceKeyBytes || strings.ContainsFunc(v, unicode.IsControl) {
		return fmt.Errorf("want 1 to %d bytes, and no control characters", kv.MaxOnceKeyBytes)
	}
	*k = onceKey(v)
	return nil
}

// maxInputBytes bounds a value or a transaction that is read whole; the cluster's own
// limit is lower.
const maxInputBytes = 64 << 20

// value returns the value of a put or append: the second argument, else standard
// input.
func (a *app) value(args []string) ([]byte, error) {
	if len(args) > 1 {
		return []byte(args[1]), nil
	}
	return readInput(a.in, "standard input")
}

// readInput reads r, of that name, as far as a request may be long.
func readInput(r io.Reader, name string) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxInputBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxInputBytes {
		return nil, fmt.Errorf("%s has more than %d bytes: split it into several writes", name, maxInputBytes)
	}
	return data, nil
}
