# Every variable, for a hospital that reaches the API through its VPN.
name   = "readmission"
region = "eu-central-1"
tags   = { department = "quality", cost_centre = "4711" }

cidr          = "10.60.0.0/20"
nat           = true
inbound_cidrs = ["10.0.0.0/16"]
api_port      = 8000
node_port     = 30080

instance_type = "m7i.xlarge"
ami           = "ami-0123456789abcdef0"
root_gb       = 60
data_gb       = 200

release = {
  url    = "https://example.org/releases/health-predict-1.0.0.tar.gz"
  sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
}
minikube = {
  version = "1.38.1"
  sha256  = "099477eaf248bcb5bcea8ce78a2898e93ac01461c35189da1848c3de82ecd22e"
}
agents = {
  ssm        = { version = "latest" }
  cloudwatch = { version = "latest" }
}

schedule = "30 4 * * *"
mlflow   = true
settings = {
  HEALTH_PREDICT_SEARCH__ENABLED     = "true"
  HEALTH_PREDICT_SEARCH__TIME_BUDGET = "7200"
  HEALTH_PREDICT_ALERT__EMAIL_TO     = "quality@example.org"
  HEALTH_PREDICT_ALERT__EMAIL_HOST   = "smtp.example.org"
}

alarm_email = "operations@example.org"
silent_days = 2
retention   = { logs = 731, versions = 180, runs = 180 }
protect     = true
