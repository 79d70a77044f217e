// The application, the client and the prober of pods in tests: one static executable, of the standard library alone.
//
//	app serve [-port N] [-name S] [-startup D] [-calls URL]
//	                                             HTTP/1 and HTTP/2 without TLS: /          NAME RELEASE
//	                                             /fetch?url=U   what U answered to the application, or 502 and why
//	                                             /chain         NAME and the peer that a sidecar vouched for, then what
//	                                                            -calls URL answers; 502 when that does not answer 200
//	                                             /exit?code=N   ends with it
//	                                             gRPC's health service: always SERVING
//	app get [-for D] URL                         tries until it is answered with 200; prints the body
//	app load -url U [-rate N] [-workers N] [-reuse N]
//	                                             requests at a rate until SIGTERM, then one line of JSON of counts. A worker
//	                                             has one connection, and closes it between requests when it has carried N
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// How many requests a connection carries by default. One that is kept for ever stays with the pods that were ready when it was
// opened, and those that come later get no request.
const reuse = 20

// How long an answer is waited for. A sidecar that is replaced on a busy machine takes some seconds; that is told, and no failure.
const patience = 20 * time.Second

func main() {
	verbs := map[string]func([]string){"serve": serve, "get": get, "load": load}
	if len(os.Args) < 2 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: app serve|get|load")
		os.Exit(2)
	}
	verbs[os.Args[1]](os.Args[2:])
}

func release() string {
	text, _ := os.ReadFile("/etc/release")
	return strings.TrimSpace(string(text))
}

func serve(args []string) {
	f := flag.NewFlagSet("serve", flag.ExitOnError)
	port := f.Int("port", 8080, "")
	name := f.String("name", "app", "")
	startup := f.Duration("startup", 0, "wait before listening")
	calls := f.String("calls", "", "what /chain asks in turn")
	f.Parse(args)
	time.Sleep(*startup)
	client := &http.Client{Timeout: patience}
	var called atomic.Uint64
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s\n", *name, release()) })
	mux.HandleFunc("/fetch", func(w http.ResponseWriter, r *http.Request) {
		answer, err := client.Get(r.URL.Query().Get("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.Header().Set("server-seen", answer.Header.Get("server"))
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, answer.Body)
	})
	mux.HandleFunc("/chain", func(w http.ResponseWriter, r *http.Request) {
		line := fmt.Sprintf("%s %s\n", *name, peer(r.Header.Get("x-forwarded-client-cert")))
		if *calls == "" {
			io.WriteString(w, line)
			return
		}
		if called.Add(1)%reuse == 0 {
			client.CloseIdleConnections()
		}
		answer, err := client.Get(*calls)
		if err == nil {
			defer answer.Body.Close()
			var body []byte
			body, err = io.ReadAll(answer.Body)
			if err == nil && answer.StatusCode != 200 {
				err = fmt.Errorf("%s: %s", answer.Status, body)
			}
			line += string(body)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		io.WriteString(w, line)
	})
	mux.HandleFunc("/exit", func(w http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.URL.Query().Get("code"))
		time.AfterFunc(50*time.Millisecond, func() { os.Exit(code) })
	})
	mux.HandleFunc("/grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("content-type", "application/grpc")
		w.Header().Set("trailer", "grpc-status")
		// A message of two bytes, without compression: status SERVING.
		w.Write([]byte{0, 0, 0, 0, 2, 8, 1})
		w.Header().Set("grpc-status", "0")
	})
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{Addr: fmt.Sprintf(":%d", *port), Handler: mux, Protocols: protocols}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-term
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		server.Shutdown(ctx)
		os.Exit(0)
	}()
	fmt.Printf("%s serves on %d\n", *name, *port)
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	select {}
}

// The SPIFFE ID in x-forwarded-client-cert, or "nobody".
func peer(forwarded string) string {
	for _, part := range strings.FieldsFunc(forwarded, func(c rune) bool { return c == ';' || c == ',' }) {
		if uri, found := strings.CutPrefix(part, "URI="); found {
			return strings.Trim(uri, "\"")
		}
	}
	return "nobody"
}

func get(args []string) {
	f := flag.NewFlagSet("get", flag.ExitOnError)
	wait := f.Duration("for", 20*time.Second, "")
	f.Parse(args)
	client := &http.Client{Timeout: 3 * time.Second}
	for end := time.Now().Add(*wait); ; time.Sleep(100 * time.Millisecond) {
		answer, err := client.Get(f.Arg(0))
		if err == nil {
			body, _ := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode == 200 {
				fmt.Print(string(body))
				return
			}
			err = errors.New(answer.Status)
		}
		if time.Now().After(end) {
			fmt.Println("error:", err)
			os.Exit(1)
		}
	}
}

func load(args []string) {
	f := flag.NewFlagSet("load", flag.ExitOnError)
	url := f.String("url", "", "")
	rate := f.Int("rate", 100, "requests per second")
	workers := f.Int("workers", 16, "")
	most := f.Int("reuse", reuse, "requests on a connection")
	f.Parse(args)
	var mutex sync.Mutex
	var ok, failed int
	var slowest time.Duration
	reasons := map[string]int{}
	started := time.Now()
	one := func(client *http.Client) {
		begun := time.Now()
		err := call(client, *url)
		mutex.Lock()
		defer mutex.Unlock()
		took := time.Since(begun)
		slowest = max(slowest, took)
		if err == nil {
			ok++
		} else {
			failed++
			reasons[err.Error()]++
		}
		if err != nil || took > time.Second {
			fmt.Fprintf(os.Stderr, "after %v: %v, error: %v\n", begun.Sub(started).Round(time.Millisecond), took.Round(time.Millisecond), err)
		}
	}
	ticks := make(chan struct{}, *workers)
	var done sync.WaitGroup
	for range *workers {
		done.Add(1)
		go func() {
			defer done.Done()
			// A pool of its own: in a shared one the connection that was used last is used next, and the others rest.
			client := &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			sent := 0
			for range ticks {
				one(client)
				if sent++; sent%*most == 0 {
					client.CloseIdleConnections()
				}
			}
		}()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	for step := time.NewTicker(time.Second / time.Duration(*rate)); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-step.C:
			select {
			case <-ctx.Done():
			case ticks <- struct{}{}:
			}
		}
	}
	close(ticks)
	done.Wait()
	line, _ := json.Marshal(map[string]any{"ok": ok, "failed": failed, "reasons": reasons, "slowest_ms": slowest.Milliseconds()})
	fmt.Println(string(line))
}

// One request, whose answer is 200. A kept connection may be closed just when a request comes on it. What may be sent again is
// then sent again, as RFC 9110 (9.2.2) and RFC 9112 (9.3.1) ask of clients; nothing else is.
func call(client *http.Client, url string) error {
	request, err := http.NewRequest("POST", url, strings.NewReader("x"))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Idempotency-Key", "load")
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != 200 {
		line, _, _ := strings.Cut(string(body), "\n")
		err = fmt.Errorf("%s: %.160s", answer.Status, line)
	}
	return err
}
