// Encrypts and decrypts with the standard library alone: go run client.go
package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

const tries = 5

// Client calls a service; its connections stay open between calls.
type Client struct {
	server    string
	tokenFile string
	http      http.Client
}

// New makes a client of the service that the environment names.
func New() (*Client, error) {
	client := new(Client)
	client.server = os.Getenv("KMS_PROXY_SERVER")
	client.tokenFile = os.Getenv("KMS_PROXY_TOKEN_FILE")
	if client.server == "" {
		client.server = "http://127.0.0.1:8080"
	}
	config := new(tls.Config)
	if path := os.Getenv("KMS_PROXY_CA"); path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: no certificate is in it", path)
		}
	}
	if path := os.Getenv("KMS_PROXY_CERT"); path != "" {
		pair, err := tls.LoadX509KeyPair(path, os.Getenv("KMS_PROXY_KEY"))
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	transport := new(http.Transport)
	transport.TLSClientConfig = config
	transport.ForceAttemptHTTP2 = true
	transport.IdleConnTimeout = time.Minute
	client.http = http.Client{Timeout: 15 * time.Second, Transport: transport}
	return client, nil
}

// Refused is what the service, or a proxy before it, says instead of an answer.
type Refused struct {
	Status int    `json:"-"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

func (r *Refused) Error() string {
	return fmt.Sprintf("%s: %s (HTTP %d)", r.Code, r.Detail, r.Status)
}

func refused(status int, body []byte) *Refused {
	r := new(Refused)
	if json.Unmarshal(body, r) != nil || r.Code == "" {
		r.Code, r.Detail = fmt.Sprintf("http_%d", status), "the answer is not from kms-proxy"
	}
	r.Status = status
	return r
}

// sealed is an envelope and what it was made with. A []byte is base64 in JSON.
type sealed struct {
	Plaintext  []byte `json:"plaintext,omitempty"`
	Ciphertext string `json:"ciphertext,omitempty"`
	AAD        []byte `json:"aad,omitempty"`
	Chain      string `json:"chain,omitempty"`
}

type answer struct {
	Plaintext  []byte `json:"plaintext"`
	Ciphertext string `json:"ciphertext"`
}

// call makes a call. A broken connection, 429 and 503 are worth another try: calls can be repeated.
func (c *Client) call(path string, request sealed) (*answer, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	for left := tries - 1; ; left-- {
		status, wait, text, err := c.send(path, body)
		switch {
		case err != nil && left == 0:
			return nil, err
		case err != nil:
			time.Sleep(200 * time.Millisecond)
			continue
		case (status == 429 || status == 503) && left > 0:
			time.Sleep(wait)
			continue
		}
		made := new(answer)
		if status != http.StatusOK || json.Unmarshal(text, made) != nil {
			return nil, refused(status, text)
		}
		return made, nil
	}
}

// send sends a request once: the status, the time until another try, and the whole answer.
func (c *Client) send(path string, body []byte) (int, time.Duration, []byte, error) {
	request, err := http.NewRequest(http.MethodPost, c.server+path, bytes.NewReader(body))
	if err != nil {
		return 0, 0, nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if c.tokenFile != "" {
		// It is read for each call: tokens are replaced while programs run.
		token, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return 0, 0, nil, err
		}
		request.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	response, err := c.http.Do(request)
	if err != nil {
		return 0, 0, nil, err
	}
	defer response.Body.Close()
	seconds, err := strconv.Atoi(response.Header.Get("Retry-After"))
	if err != nil {
		seconds = 1
	}
	// A connection can be used again once its answer was read to the end.
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, time.Duration(seconds) * time.Second, text, err
}

func main() {
	client, err := New()
	if err != nil {
		log.Fatal(err)
	}
	// The AAD binds the ciphertext to its place: moved to another row, it does not open.
	aad := []byte("row 7")
	made, err := client.call("/v1/encrypt", sealed{Plaintext: []byte("hello"), AAD: aad})
	if err != nil {
		log.Fatal(err)
	}
	opened, err := client.call("/v1/decrypt", sealed{Ciphertext: made.Ciphertext, AAD: aad})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(opened.Plaintext))

	_, err = client.call("/v1/decrypt", sealed{Ciphertext: made.Ciphertext, AAD: []byte("row 8")})
	var refused *Refused
	if !errors.As(err, &refused) {
		log.Fatal("it opened: ", err)
	}
	fmt.Println("refused:", refused.Code)
}
