package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/settkv/sett/config"
	"github.com/settkv/sett/node"
)

// stopTimeout bounds an orderly stop. It is less than what container runtimes and
// service managers are told to wait before they kill.
const stopTimeout = 25 * time.Second

func (a *app) serveCommand() *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one node of a cluster",
		Long: `Run one node of a cluster until SIGTERM or SIGINT, which stop it in order: finish
what is in flight, hand leadership over, close. A second signal ends it at once.

Every setting is also an environment variable (--raft-addr is SETT_RAFT_ADDR) and a
key of the YAML file of --config; first wins: flag, environment, file, default.`,
		Args: cobra.NoArgs,
	}
	config.AddFlags(cmd.Flags())
	cmd.Flags().BoolVar(&show, "print-config", false, "show each setting, its value and where that came from, and exit")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		loaded, err := config.Load(config.Sources{Flags: cmd.Flags(), Environ: a.environ})
		if err != nil {
			return usagef("%w", err)
		}
		if show {
			return loaded.Print(a.out)
		}
		if err := serve(cmd.Context(), loaded, newLogger(a.err, loaded.Config), a.fatal); err != nil {
			// The operator gets the whole cause, and one exit code: the codes of client
			// commands say something else.
			return errors.New(err.Error())
		}
		return nil
	}
	return cmd
}

// fatal ends the process with the reason in one line. It is called on the goroutine
// that found it: libraries below may panic on what comes next.
func (a *app) fatal(err error) {
	fmt.Fprintln(a.err, "sett: the node stopped itself: "+errorLine(err))
	os.Exit(exitOther)
}

// newLogger logs to w as the configuration says.
func newLogger(w io.Writer, c config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == config.LogText || c.LogFormat == config.LogAuto && isTerminal(w) {
		return slog.New(slog.NewTextHandler(w, options))
	}
	return slog.New(slog.NewJSONHandler(w, options))
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// serve runs a node until a signal or the end of ctx. exit is called, and must end the
// process, when the node can't go on.
func serve(ctx context.Context, loaded *config.Loaded, log *slog.Logger, exit func(error)) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopped := make(chan struct{})
	defer close(stopped)
	go func() {
		select {
		case s := <-signals:
			log.Info("stopping", "signal", s.String())
		case <-stopped:
			return
		}
		cancel()
		select {
		case s := <-signals:
			// What is acknowledged is on disk: ending here costs the next start a
			// recovery, nothing else.
			log.Warn("stopping at once", "signal", s.String())
			os.Exit(exitOther)
		case <-stopped:
		}
	}()

	for _, w := range loaded.Warnings {
		log.Warn("setting", "warning", w)
	}
	n, err := node.Open(ctx, loaded.Config, node.Options{Logger: log, Version: buildVersion(), Exit: exit})
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		return nil // told to stop while starting
	case err != nil:
		return err
	}
	select {
	case <-ctx.Done():
	case <-n.Done():
		return fmt.Errorf("the node stopped itself: %w", n.Err())
	}
	stopCtx, done := context.WithTimeout(context.Background(), stopTimeout)
	defer done()
	err = n.Shutdown(stopCtx)
	if err != nil {
		return fmt.Errorf("stop the node: %w", err)
	}
	log.Info("stopped")
	return nil
}
