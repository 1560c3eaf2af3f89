package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// flatValueBytes is the size of the values that are streamed.
	flatValueBytes = 4096
	// flatParts is in how many parts of its time a stream's memory is told.
	flatParts = 5
)

// measureFlat streams o.flat gigabytes in and out with the command line client, through
// the second node, and tells the memory of all processes in each part of the time.
func measureFlat(ctx context.Context, o options, urls []string, pids []int) error {
	url := urls[len(urls)-1]
	in := lines{prefix: "flat/", keys: o.flat * 1_000_000_000 / flatValueBytes, valueBytes: flatValueBytes}
	r, w := io.Pipe()
	go func() { w.CloseWithError(in.write(w)) }()
	load := exec.CommandContext(ctx, o.sett, "import", "--endpoints", url)
	load.Stdin = r
	if err := flatRun(fmt.Sprintf("%d GB in", o.flat), load, pids); err != nil {
		return err
	}
	out := exec.CommandContext(ctx, o.sett, "export", "--endpoints", url, "--prefix", in.prefix)
	out.Stdout = io.Discard
	return flatRun(fmt.Sprintf("%d GB out", o.flat), out, pids)
}

// flatRun runs a command and samples the memory of it and of the nodes.
func flatRun(what string, cmd *exec.Cmd, pids []int) error {
	var problems bytes.Buffer
	cmd.Stderr = &problems
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	all := append(slices.Clone(pids), cmd.Process.Pid)
	samples := make([][]int, len(all))
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for i, pid := range all {
				if kb := memoryOf(pid, "RssAnon:"); kb > 0 {
					samples[i] = append(samples[i], kb)
				}
			}
			continue
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("%s: %w: %s", what, err, problems.Bytes())
			}
		}
		break
	}
	fmt.Printf("%s: %v; memory that is not files, in MiB, the median of each fifth of the time (and the peak):\n", what, time.Since(began).Round(time.Millisecond))
	for i, s := range samples {
		name := fmt.Sprintf("node %d", i+1)
		if i == len(pids) {
			name = "client"
		}
		fmt.Printf("  %-8s", name)
		peak := 0
		for part := range flatParts {
			piece := slices.Clone(s[part*len(s)/flatParts : (part+1)*len(s)/flatParts])
			slices.Sort(piece)
			if len(piece) > 0 {
				fmt.Printf(" %5d", piece[len(piece)/2]>>10)
				peak = max(peak, piece[len(piece)-1])
			}
		}
		fmt.Printf("  (%d)\n", peak>>10)
	}
	return nil
}

// memoryOf reads a line of a process's status, in KiB; 0 if it can't be told.
func memoryOf(pid int, name string) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")))
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// measureIdle opens o.idle watches of keys that nobody writes, and measures what they take.
func measureIdle(ctx context.Context, o options, urls []string, pids []int) error {
	free := putsPerSecond(ctx, o, urls)
	printMemory("before", pids)
	wctx, stop := context.WithCancel(ctx)
	defer stop()
	began := time.Now()
	_, wait, err := watchAll(wctx, o.idle, urls, "?prefix=idle/")
	if err != nil {
		return err
	}
	fmt.Printf("%d watches opened in %v\n", o.idle, time.Since(began).Round(time.Millisecond))
	printMemory("with them", pids)
	watched := putsPerSecond(ctx, o, urls)
	printMemory("after writes beside them", pids)
	fmt.Printf("puts by %d clients: %.0f/s alone, %.0f/s beside %d idle watchers: %.2f\n", o.clients[len(o.clients)-1], free, watched, o.idle, watched/free)
	stop()
	wait()
	return nil
}
