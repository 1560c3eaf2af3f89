package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/client"
	"github.com/settkv/sett/kv"
)

func (a *app) watchCommand() *cobra.Command {
	var prefix, command string
	var from uint64
	var o client.WatchOptions
	cmd := &cobra.Command{
		Use:   "watch [KEY] [--prefix P]",
		Short: "Follow changes: every one once, in order, through failures of nodes",
		Long: `Follow the changes of a key, of the keys that begin with a prefix, or of all. Each is a
line: revision, type (put, delete or expire), key and value, shortened; --output json
prints the lines of GET /v1/watch, --output raw revision, type and key.

--exec CMD runs CMD by the shell for each change instead, one at a time and in order,
with the value on its standard input and these variables:

  SETT_EVENT_TYPE       put, delete or expire
  SETT_EVENT_KEY        the key; unset if it contains a NUL byte
  SETT_EVENT_KEY_BASE64 the key in base64
  SETT_EVENT_REVISION   the revision of the change

If CMD fails the watch ends, and says where to go on. sett serve ignores these
variables.

The watch ends at a signal, exit code 0, or when the history it needs is gone.`,
		Args: cobra.MaximumNArgs(1),
	}
	conn := a.connectionFlags(cmd)
	cmd.Flags().StringVar(&prefix, "prefix", "", "watch the keys that begin with this")
	cmd.Flags().Uint64Var(&from, "from", 0, "first revision to tell of (default the next)")
	cmd.Flags().BoolVar(&o.Previous, "previous", false, "with --output json: tell what was there before each change, too")
	cmd.Flags().StringVar(&command, "exec", "", "run this by the shell for each change")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		r := kv.PrefixRange(prefix)
		if len(args) > 0 {
			if cmd.Flags().Changed("prefix") {
				return usagef("watch takes a KEY or --prefix, not both")
			}
			if args[0] == "" {
				return usagef("the KEY is empty; leave it out to watch all keys")
			}
			r = client.KeyRange(args[0])
		}
		if cmd.Flags().Changed("from") && from == 0 {
			return usagef("bad value 0 for --from: revisions begin at 1; leave it out to watch from now on")
		}
		o.From = kv.Revision(from)
		return conn.stream(cmd, func(ctx context.Context, cl *client.Client) error {
			return conn.watch(ctx, cl, watch{Range: r, WatchOptions: o, command: command})
		})
	}
	return cmd
}

// watch is what a watch command does.
type watch struct {
	kv.Range
	client.WatchOptions
	command string
}

func (c *connection) watch(ctx context.Context, cl *client.Client, w watch) error {
	watcher, err := cl.Watch(ctx, w.Range, w.WatchOptions)
	if err != nil {
		return err
	}
	defer watcher.Close()
	for {
		batch, err := watcher.Next(ctx)
		switch {
		case err != nil:
		case w.command == "":
			err = c.printBatch(batch, w.WatchOptions)
		default:
			err = c.app.execAll(ctx, w.command, batch.Events)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, context.Canceled) {
			return nil // by the signal that ends a watch
		}
		return err
	}
}

func (c *connection) printBatch(b kv.WatchBatch, o client.WatchOptions) error {
	if c.output == outputJSON {
		lines, err := client.EncodeBatch(b, o)
		if err == nil {
			_, err = c.app.out.Write(lines)
		}
		return err
	}
	for _, e := range b.Events {
		line := fmt.Sprintf("%d\t%s\t%s\n", e.Revision, e.Type, e.Item.Key)
		if c.output != outputRaw {
			line = fmt.Sprintf("%d\t%s\t%q", e.Revision, e.Type, e.Item.Key)
			if e.Type == kv.EventPut {
				line += "\t" + shortened(e.Item.Value)
			}
			line += "\n"
		}
		if _, err := c.app.out.Write([]byte(line)); err != nil {
			return err
		}
	}
	return nil
}

// shortened is a value for a line.
func shortened(value []byte) string {
	const most = 200
	if len(value) <= most {
		return fmt.Sprintf("%q", value)
	}
	return fmt.Sprintf("%q… (%d bytes)", value[:most], len(value))
}

// execAll runs command for each event of a revision.
func (a *app) execAll(ctx context.Context, command string, events []*kv.Event) error {
	for _, e := range events {
		err := a.execOne(ctx, command, e)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("the command failed on the %s of %q at revision %d: %w; go on with --from %d, which has that revision again", e.Type, e.Item.Key, e.Revision, err, e.Revision)
		}
	}
	return nil
}

// execStop is how long a command may take to end once it was told to.
const execStop = 5 * time.Second

func (a *app) execOne(ctx context.Context, command string, e *kv.Event) error {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = execStop
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(e.Item.Value), a.out, a.err
	// A watch inside another one hands on nothing of the outer event.
	outer := func(v string) bool { return strings.HasPrefix(v, "SETT_EVENT_") }
	cmd.Env = append(slices.DeleteFunc(slices.Clone(a.environ), outer),
		"SETT_EVENT_TYPE="+e.Type.String(),
		fmt.Sprintf("SETT_EVENT_REVISION=%d", e.Revision),
		"SETT_EVENT_KEY_BASE64="+base64.StdEncoding.EncodeToString([]byte(e.Item.Key)),
	)
	if !strings.Contains(e.Item.Key, "\x00") {
		cmd.Env = append(cmd.Env, "SETT_EVENT_KEY="+e.Item.Key)
	}
	return cmd.Run()
}
